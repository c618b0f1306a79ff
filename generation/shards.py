"""Writing the files of a training set, so that ``datasets.load_dataset`` opens the folder as it is.

All shards have one schema, with arrays as nested lists of any size, so that together they are one table. The data
set card declares that table as the default configuration, and each magnification as one of its own with arrays of
fixed shape, which decode faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import pyarrow as pa
from datasets import Array3D, DatasetInfo, Features, List, Value
from datasets import Image as ImageFeature
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData
from numpy.typing import NDArray

from generation.data import pooled
from generation.index import Index, Shard
from generation.pyramid import Patch
from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import Magnification

CARD = "README.md"
"""Name of the data set card."""

_BATCH_BYTES = 64 * 2**20  # rows of one magnification are collected up to this size


def columns(unpooled: bool, latents: bool) -> Features:
    """The columns of every shard: those of the released demo data sets, then the patch's latent and place.

    Args:
        unpooled: with the whole grids.
        latents: with latents.
    """
    array = List(List(List(Value("float16"))))
    features = {
        "image": ImageFeature(),
        "ssl_feat": array,
        "ssl_feat_unpooled": array,
        "mag": Value("int64"),
        "latent": array,
        "slide": Value("string"),
        "x": Value("int64"),
        "y": Value("int64"),
        "width": Value("int64"),
        "height": Value("int64"),
        "orientation": Value("int64"),
    }
    absent = {"ssl_feat_unpooled": not unpooled, "latent": not latents}
    return Features({name: feature for name, feature in features.items() if not absent.get(name)})


class SlideWriter:
    """Writes the shards of one slide; a context manager. They appear at its end, and none after an error.

    Args:
        folder: of the set.
        slide: name of the slide.
        features: see `columns`.
        pool: compresses the images.
    """

    def __init__(self, folder: Path, slide: str, features: Features, pool: Executor) -> None:
        self._folder = folder
        self._slide = slide
        self._features = features
        self._pool = pool
        self._files = ExitStack()
        self._writers: dict[Magnification, _ShardWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._files.close()
        else:
            # `replacing` takes a RuntimeError for a full disk; this one may be an encoder's and is left alone.
            self._files.__exit__(Exception, Exception("abandoned"), None)

    def add(self, patches: list[Patch], latents: Iterable[NDArray[np.float16] | None]) -> None:
        """Appends patches of any magnifications.

        Args:
            patches: the patches.
            latents: of each, (channels, h, w), or None.
        """
        images = self._pool.map(_png, [patch.image for patch in patches])
        for patch, image, latent in zip(patches, images, latents, strict=True):
            row = {
                "image": {"bytes": image, "path": None},
                "ssl_feat": pooled(patch.grid).astype(np.float16),
                "ssl_feat_unpooled": patch.grid,
                "mag": patch.magnification.index,
                "latent": latent,
                "slide": self._slide,
                "x": patch.x,
                "y": patch.y,
                "width": patch.width,
                "height": patch.height,
                "orientation": patch.orientation,
            }
            self._writer(patch.magnification).add({name: row[name] for name in self._features})

    def shards(self) -> tuple[Shard, ...]:
        """What was written, finest magnification first; to be asked after the end."""
        found = []
        for step in sorted(self._writers):
            file = self._file(step)
            found.append(Shard(file, str(step), self._writers[step].rows, (self._folder / file).stat().st_size))
        return tuple(found)

    def _file(self, magnification: Magnification) -> str:
        return f"data/{magnification}/{self._slide}.arrow"

    def _writer(self, magnification: Magnification) -> _ShardWriter:
        if magnification not in self._writers:
            path = self._folder / self._file(magnification)
            make_folder(path.parent)
            writer = self._files.enter_context(_ShardWriter.open(path, self._features.arrow_schema))
            self._writers[magnification] = writer
        return self._writers[magnification]


class _ShardWriter:
    """One Arrow file, written in batches of bounded size.

    Attributes:
        rows: how many were added.
    """

    def __init__(self, path: Path, sink: pa.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._path = path
        self._sink = sink
        self._schema = schema
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self.rows = 0

    @classmethod
    @contextmanager
    def open(cls, path: Path, schema: pa.Schema) -> Iterator[Self]:
        """A writer whose file appears at the end of the block, if there was no error."""
        with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
            writer = cls(path, sink, schema)
            yield writer
            writer._flush()

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row: column to value, arrays as NumPy arrays."""
        self._waiting.append(row)
        self._bytes += sum(v.nbytes for v in row.values() if isinstance(v, np.ndarray)) + len(row["image"]["bytes"])
        self.rows += 1
        if self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        arrays = [_column([row[field.name] for row in self._waiting], field.type) for field in self._schema]
        try:
            self._sink.write_batch(pa.record_batch(arrays, schema=self._schema))
        except OSError as error:
            raise ZoomfeatError(
                f"cannot be written ({error})", path=self._path, cure="Check that there is space left on its disk"
            ) from error
        self._waiting, self._bytes = [], 0


def _png(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column; arrays of one shape become nested lists without a detour over Python numbers."""
    if not isinstance(values[0], np.ndarray):
        return pa.array(values, kind)
    stacked = np.stack(values)
    nested = pa.array(stacked.reshape(-1))
    for length in stacked.shape[:0:-1]:
        nested = pa.ListArray.from_arrays(np.arange(0, len(nested) + 1, length, dtype=np.int32), nested)
    return nested


def write_card(folder: Path, index: Index) -> None:
    """Writes the data set card, which tells ``load_dataset`` where the files of each configuration are.

    Args:
        folder: of the set.
        index: what it holds.
    """
    configurations: list[dict[str, Any]] = [_configuration("all", "*") | {"default": True}]
    infos = DatasetInfosDict()
    counts = {step: index.counts.get(str(step), 0) for step in index.ladder.steps}
    for step in (step for step, count in counts.items() if count):
        configurations.append(_configuration(str(step), str(step)))
        infos[str(step)] = DatasetInfo(config_name=str(step), features=_fixed_columns(index, step))
    header = DatasetCardData(configs=configurations)
    infos.to_dataset_card_data(header)
    rows = [f"| {name} | {count} |" for name, count in index.counts.items()]
    text = ["---", header.to_yaml(), "---", *_explained(index), "", "| magnification | patches |", "|---|---|", *rows]
    with replacing(folder / CARD) as path:
        path.write_text("\n".join(text) + "\n", encoding="utf-8")


def _configuration(name: str, below: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": f"data/{below}/*.arrow"}]}


def _fixed_columns(index: Index, step: Magnification) -> Features:
    """The columns of one magnification, whose arrays all have one shape."""
    features = columns(index.configuration["unpooled"], index.latent_shape is not None)
    shapes = {
        "ssl_feat": (index.embedding_dim, step.pooled_grid, step.pooled_grid),
        "ssl_feat_unpooled": (index.embedding_dim, step.grid, step.grid),
        "latent": index.latent_shape,
    }
    return Features(
        {name: Array3D(shapes[name], "float16") if name in shapes else kind for name, kind in features.items()}
    )


def _explained(index: Index) -> list[str]:
    made = index.configuration
    return [
        "# Multi-scale training set for ZoomLDM",
        "",
        f"Made by `zoomfeat prepare` from {len(index.slides)} slides. Embeddings: {made['ssl_encoder']}, "
        f"{index.embedding_dim} channels. First stage: {made['first_stage'] or 'none, no latents'}.",
        '`load_dataset(folder)` opens all magnifications, `load_dataset(folder, "5x")` one.',
        *(["", f"Note: {index.note}."] if index.note else []),
    ]
