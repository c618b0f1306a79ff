"""What one or several models say about one slide, with an interval that is called what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Output:
    """One number of a prediction.

    Attributes:
        name: of the class, or what the number is (``score``, ``risk``).
        value: the number; the mean over models where there are several.
        low: lower end of its interval; None without one.
        high: upper end.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Prediction:
    """The prediction of one slide.

    Attributes:
        kind: ``probability`` (one output a class), ``score`` or ``risk`` (one output).
        outputs: the numbers.
        models: how many models it is the mean of.
        interval: what the interval is, in a sentence or two for the reader.
    """

    kind: str
    outputs: tuple[Output, ...]
    models: int
    interval: str

    @property
    def best(self) -> Output:
        """The output with the largest value: of probabilities, the predicted class."""
        return max(self.outputs, key=lambda output: output.value)

    @property
    def has_interval(self) -> bool:
        """Whether the outputs carry an interval."""
        return self.outputs[0].low is not None

    def row(self) -> dict[str, str | float | int]:
        """Cells of a table: ``prob_<class>`` or the name of the output, with its interval where there is one."""
        cells: dict[str, str | float | int] = {"prediction": self.best.name} if self.kind == "probability" else {}
        for output in self.outputs:
            name = f"prob_{output.name}" if self.kind == "probability" else output.name
            cells[name] = output.value
            if output.low is not None and output.high is not None:
                cells |= {f"{name}_low": output.low, f"{name}_high": output.high}
        return cells | {"models": self.models}


def of_models(kind: str, names: Sequence[str], values: NDArray[np.floating]) -> Prediction:
    """The mean of several models with their range; the plain value of one.

    Args:
        kind: see `Prediction`.
        names: of the outputs.
        values: (K, C), a row a model, a column an output.
    """
    count = len(values)
    if count == 1:
        outputs = tuple(Output(name, float(value)) for name, value in zip(names, values[0], strict=True))
        return Prediction(kind, outputs, 1, "One model, without an interval.")
    mean = values.mean(axis=0)
    columns = zip(names, mean, values.min(axis=0), values.max(axis=0), strict=True)
    agree = int((values.argmax(axis=1) == mean.argmax()).sum())
    votes = f"{agree} of them say {names[int(mean.argmax())]}. " if kind == "probability" else ""
    return Prediction(
        kind,
        tuple(Output(name, float(value), float(low), float(high)) for name, value, low, high in columns),
        count,
        f"Mean of {count} models; the range is the lowest and the highest of them. {votes}It shows how far models of "
        "other folds or seeds agree on this slide, and is no confidence interval.",
    )


def of_resamples(
    kind: str, names: Sequence[str], value: NDArray[np.floating], resampled: NDArray[np.floating], unit: str
) -> Prediction:
    """One model's value with the 95 % percentile interval of a bootstrap over the slide's patches.

    Args:
        kind: see `Prediction`.
        names: of the outputs.
        value: (C,), of the whole bag.
        resampled: (B, C), of each resample (Efron and Tibshirani 1993, chapter 13: the percentile interval).
        unit: what was drawn, for the sentence, for example ``40 5x patches, each with the finer ones in it``.
    """
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    return Prediction(
        kind,
        tuple(
            Output(name, float(v), float(a), float(b)) for name, v, a, b in zip(names, value, low, high, strict=True)
        ),
        1,
        f"One model. The range holds 95 % of its predictions over {len(resampled)} bootstrap resamples of the slide's "
        f"{unit}. It shows how much the prediction hangs on which tissue was seen; how sure the model's training "
        "or its labels are, it does not show.",
    )
