"""One slide explained: prediction and attention as a table, GeoJSON, heatmaps and a page."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mil.attention import SlideAttention, slide_attention
from mil.ensemble import Advance, Ensemble
from mil.estimators import MILEstimator
from mil.heatmap import VALUES, blend, draw_heatmap, picture_size
from mil.prediction import Prediction
from mil.report import Gallery, read_gallery, write_geojson, write_geotiff, write_page
from zoomfeat.bags import UNKNOWN, Bag
from zoomfeat.conf.schema import ExplainConfig
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import replacing
from zoomfeat.slides import Slide, SlideEntry

NO_SLIDE = (
    "No slide file was at hand: the map lies on an empty outline, and there are no pictures of patches. "
    "Give the slides with slides= to see the tissue."
)

_TRAINING = {
    "unseen": "None of these models saw this slide in training.",
    "seen": "The models saw this slide in training, so that prediction and agreement look better than they are.",
    "unknown": "Whether a model saw this slide in training is not recorded; if so, it looks surer than it is.",
}


@dataclass(frozen=True)
class Explanation:
    """What was found for one slide.

    Attributes:
        prediction: of the models.
        training: what is known of the slide in the models' training, see `Ensemble.training`.
        with_slide: whether its pixels were at hand.
    """

    prediction: Prediction
    training: str
    with_slide: bool


def check_config(config: ExplainConfig) -> None:
    """Refuses what cannot run before any bag is opened.

    Raises:
        ConfigurationError: a value out of its range.
    """
    if config.values not in VALUES:
        raise ConfigurationError(f"values={config.values!r}", cure=f"Use one of {', '.join(VALUES)}")
    if not 0 <= config.opacity <= 1:
        raise ConfigurationError(f"opacity={config.opacity}, expected 0 to 1", cure="The default is 0.5")
    for name, least in (("thumbnail", 64), ("patches", 0), ("bootstrap", 0)):
        if getattr(config, name) < least:
            raise ConfigurationError(
                f"{name}={getattr(config, name)}, expected at least {least}", cure="See `zoomfeat explain --help`"
            )


def explain_slide(
    bag: Bag, ensemble: Ensemble, config: ExplainConfig, entry: SlideEntry | None, advance: Advance | None = None
) -> Explanation:
    """Explains one slide and writes its files into ``config.out``, which exists.

    Args:
        bag: of the slide.
        ensemble: all models; those that speak on this slide are chosen here.
        config: of the command.
        entry: the slide itself; None where it is not at hand.
        advance: told of the progress of the bootstrap.

    Raises:
        ZoomfeatError: the bag, the slide or the models do not fit each other, or are damaged.
    """
    slide_id = bag.metadata.slide_id
    models = ensemble.for_slide(slide_id)
    if len(models.models) == 1 and config.bootstrap:
        prediction = models.predict_resampled(bag, config.bootstrap, advance=advance)
    else:
        prediction = models.predict(bag)
    values = models.attention(bag)

    out = Path(config.out)
    with _opened(entry, bag, config) as slide:
        level0_size = (slide.width, slide.height) if slide else None
        attention = slide_attention(bag, values, level0_size, slide.mpp if slide else None)
        size = picture_size(attention.level0_size, config.thumbnail)
        thumbnail = slide.read(0, 0, slide.width, slide.height, [size])[0] if slide else None
        galleries = [read_gallery(slide, scale, config.patches) for scale in attention.scales] if slide else []
    _write_heatmaps(attention, thumbnail, size, config)
    with replacing(out / f"{slide_id}.csv") as temporary:
        attention.table().to_csv(temporary, index=False)
    write_geojson(attention, out / f"{slide_id}.geojson")
    _write_page(out / f"{slide_id}.html", bag, models, prediction, attention, thumbnail, galleries)
    return Explanation(prediction, models.training, slide is not None)


@contextmanager
def _opened(entry: SlideEntry | None, bag: Bag, config: ExplainConfig) -> Iterator[Slide | None]:
    """The slide, checked to be the one that the bag was made from; None without one."""
    if entry is None:
        yield None
        return
    known = bag.metadata.mpp_level0
    default = config.mpp or (known and sum(known) / 2)
    with Slide.open(entry.path, entry.mpp, default, reader=bag.metadata.slide_reader) as slide:
        size, expected = (slide.width, slide.height), bag.metadata.level0_size
        if expected is not None and size != expected:
            raise ConfigurationError(
                f"level 0 is {size[0]} x {size[1]} px, and the bag was made from {expected[0]} x {expected[1]} px",
                cure="Give the very file that the bag was extracted from",
                path=entry.path,
            )
        outside = [scale.magnification for scale in bag.scales if (scale.coords >= size).any()]
        if outside:
            raise ConfigurationError(
                f"the bag has {outside[0]} patches beyond its {size[0]} x {size[1]} px",
                cure="Give the very file that the bag was extracted from",
                path=entry.path,
            )
        yield slide


def _write_heatmaps(
    attention: SlideAttention, thumbnail: NDArray[np.uint8] | None, size: tuple[int, int], config: ExplainConfig
) -> None:
    """A PNG a magnification, over the slide or on a transparent ground; of an image on the map a GeoTIFF as well."""
    for scale in attention.scales:
        picture = draw_heatmap(scale, attention.level0_size, size, config.values)
        name = f"{attention.slide_id}_{scale.magnification}"
        if attention.georeference is not None:
            write_geotiff(picture, attention.georeference, attention.level0_size, Path(config.out) / f"{name}.tif")
        if thumbnail is not None:
            picture = blend(thumbnail, picture, config.opacity)
        with replacing(Path(config.out) / f"{name}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")


def _write_page(
    path: Path,
    bag: Bag,
    models: Ensemble,
    prediction: Prediction,
    attention: SlideAttention,
    thumbnail: NDArray[np.uint8] | None,
    galleries: list[Gallery],
) -> None:
    notes = [bag.metadata.note.capitalize()] if bag.metadata.note else []
    if thumbnail is None:
        notes.append(NO_SLIDE)
    if not attention.size_known:
        notes.append("The bag does not state the size of the slide: the outline ends where its patches end.")
    write_page(
        path,
        attention,
        prediction,
        list(_facts(bag, models)),
        thumbnail,
        galleries,
        notes,
        training=_TRAINING[models.training],
        models=[(model.path.name, _describe(model.estimator), model.sha256) for model in models.models],
    )


def _describe(estimator: MILEstimator) -> str:
    return f"{type(estimator).__name__}, {estimator.head}, {estimator.fusion} fusion, seed {estimator.seed}"


def _facts(bag: Bag, models: Ensemble) -> Iterator[tuple[str, str]]:
    """Provenance: where everything on the page comes from."""
    metadata = bag.metadata
    yield "bag", bag.path.name if bag.path else f"{metadata.slide_id}, converted from another tool's layout"
    yield "patches", ", ".join(f"{len(scale)} at {scale.magnification}" for scale in bag.scales)
    size = metadata.level0_size
    yield "level 0", f"{size[0]} x {size[1]} px" if size else UNKNOWN
    mpp = metadata.mpp_level0
    yield "um/px of level 0", f"{mpp[0]:g} x {mpp[1]:g} (source: {metadata.mpp_source})" if mpp else UNKNOWN
    yield "encoder", metadata.encoder
    yield "encoder weights", metadata.weights_hash
    if metadata.encoder_settings:
        yield "encoder settings", ", ".join(f"{name} {value}" for name, value in metadata.encoder_settings.items())
    yield "bag configuration", metadata.config_hash
    if metadata.versions:
        yield "bag made with", ", ".join(f"{name} {number}" for name, number in metadata.versions.items())
    packages = ("zoomfeat", "torch", "torchmil")
    yield (
        "page made with",
        ", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"]),
    )
