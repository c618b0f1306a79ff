"""The reader of multi-scale training sets, for training.

It reads what `zoomfeat prepare` makes (Arrow files with an index, see `generation.index`), and the released demo data
sets, which are Parquet or Arrow files without one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from torch.nn import functional
from torch.utils.data import Dataset

from generation.index import INDEX, Index
from zoomfeat.errors import ZoomfeatError
from zoomfeat.magnification import BRCA, MAX_GRID, PATCH_SIZE, Ladder, Magnification

_OPEN_FILES = 64  # a process keeps so many mapped at once
_REPAIR = "Delete it and run the same `zoomfeat prepare` again, which makes what is missing"


@dataclass(frozen=True)
class Sample:
    """One row of a training set; each property reads its own column, so that who trains on latents decodes no PNG.

    Attributes:
        file: where the row is.
        row: its place in the file.
        step: its magnification.
        slide: name of the slide; empty where the set does not say.
    """

    file: Path
    row: int
    step: Magnification
    slide: str

    @property
    def magnification(self) -> int:
        """Index in the ladder."""
        return self.step.index

    @property
    def image(self) -> NDArray[np.uint8]:
        """The patch, uint8 RGB (256, 256, 3).

        Raises:
            ZoomfeatError: it does not decode, or is of another size.
        """
        cell = self._required("image")
        if _is_list(cell.type):
            pixels = _as_uint8(_numpy(cell))
        else:
            value = cell[0].as_py()
            pixels = self._decoded(value["bytes"] if isinstance(value, dict) else value)
        if pixels.shape != (PATCH_SIZE, PATCH_SIZE, 3):
            raise ZoomfeatError(
                f"an image of shape {pixels.shape}; expected ({PATCH_SIZE}, {PATCH_SIZE}, 3)",
                path=self.file,
                cure="Store patches of 256 x 256 px in RGB",
            )
        return pixels

    @property
    def latent(self) -> NDArray[np.float32] | None:
        """What the first stage makes of the image, float32 (channels, h, w), not quantised; None if not stored."""
        cell = _open(self.file).cell("latent", self.row)
        return None if cell is None else _numpy(cell).astype(np.float32)

    @property
    def grid(self) -> NDArray[np.float32]:
        """Raw embeddings of the 20x patches under it, float32 (C, g, g), rows downwards, pooled to at most 8 x 8.

        The Summarizer reads them through `zoomfeat.models.summarizer.embedding_grid`, which normalises.

        Raises:
            ZoomfeatError: they are of another shape than the magnification has.
        """
        cell = _open(self.file).cell("ssl_feat", self.row)
        values = _numpy(self._required("ssl_feat_unpooled") if cell is None else cell)
        for side in (self.step.pooled_grid, self.step.grid):
            if values.ndim == 3 and values.shape[1:] == (side, side):
                return pooled(values)
            if values.ndim == 3 and values.shape[:2] == (side, side):
                return pooled(values.transpose(2, 0, 1))
        side = self.step.pooled_grid
        raise ZoomfeatError(
            f"embeddings of shape {values.shape} at {self.step}; expected (C, {side}, {side})",
            path=self.file,
            cure="Check that mag fits the row, and the ladder the set",
        )

    def _required(self, column: str) -> pa.Array:
        cell = _open(self.file).cell(column, self.row)
        if cell is None:
            raise _without(column, self.file)
        return cell

    def _decoded(self, encoded: bytes) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(encoded)) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, TypeError) as error:  # what Pillow raises for damaged files
            raise ZoomfeatError(
                f"the image of row {self.row} does not decode ({error})", path=self.file, cure=_REPAIR
            ) from error


class TrainingSet(Dataset[Sample]):
    """A training set as a map-style data set: ``len(data)``, ``data[i]``.

    Files are mapped when a row of them is first read, at most 64 a process, so that memory holds the rows in use.
    The object itself keeps paths and counts only, and goes to the workers of a DataLoader as it is.

    Args:
        contents: each file, with the slide and the ladder index (int16) of its rows.
        ladder: names of the magnifications.
        configuration: what made the set.

    Attributes:
        magnifications: int16 (N,), ladder index of every row.
        counts: magnification name to rows, finest first, for those that have any.
        embedding_dim: channels of an embedding.
        configuration: `Index.configuration`; empty for a set without an index.
        ladder: what the indices stand for.
    """

    def __init__(
        self, contents: Sequence[_Contents], ladder: Ladder = BRCA, configuration: Mapping[str, Any] | None = None
    ) -> None:
        self._contents = tuple(contents)
        self._ends = np.cumsum([len(part.magnifications) for part in contents])
        self.ladder = ladder
        self.configuration = dict(configuration or {})
        self.magnifications = np.concatenate([part.magnifications for part in contents])
        rows = np.bincount(self.magnifications, minlength=len(ladder.steps)).tolist()
        self.counts = {str(step): count for step, count in zip(ladder.steps, rows, strict=True) if count}
        self.embedding_dim = self[0].grid.shape[0]

    @classmethod
    def open(cls, folder: str | Path, ladder: Ladder | None = None) -> TrainingSet:
        """Opens a set of `zoomfeat prepare`, a folder of such sets, or one of Parquet or Arrow files.

        Sets side by side count as one: their embeddings and latents must have been made by the same networks. Files
        need the release's columns, ``image``, ``ssl_feat`` (or only ``ssl_feat_unpooled``) and ``mag``. A ``mag`` that
        is a whole number is an index in the ladder, anything else a name (``"0_3125x"``, ``"0.15625"``, ``"20x"``).
        Images may be encoded or arrays, channels first or last, uint8 or float in [0, 1] or, where one value is
        negative, [-1, 1]; embeddings (C, h, w) or (h, w, C).

        Args:
            folder: the folder.
            ladder: names and indices of the magnifications; null: what the set says, and of files without an index that
                of histology. `zoomfeat.magnification.NAIP` is that of released aerial sets.

        Raises:
            ZoomfeatError: the folder holds no set, an empty one, a damaged file, or sets that do not go together.
            MagnificationError: a ``mag`` that the ladder does not have.
        """
        folder = Path(folder)
        sets = [folder] if (folder / INDEX).is_file() else sorted(p.parent for p in folder.glob(f"*/{INDEX}"))
        if sets:
            indices = [Index.load(part) for part in sets]
            ladder = ladder or indices[0].ladder
            contents = [c for part, index in zip(sets, indices, strict=True) for c in _indexed(part, index, ladder)]
            configuration = _common(folder, sets, indices)
        else:
            ladder = ladder or BRCA
            files = sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".arrow") and p.name[0] != ".")
            contents, configuration = [_unindexed(path, ladder) for path in files], {}
        if not any(len(part.magnifications) for part in contents):
            raise ZoomfeatError(
                "no training set: no finished slide, and no Parquet or Arrow files with rows",
                path=folder,
                cure="Make one with `zoomfeat prepare`",
            )
        return cls(contents, ladder, configuration)

    @property
    def slides(self) -> list[str]:
        """The slide of every row; empty names where the set does not say."""
        return [part.slide for part in self._contents for _ in part.magnifications]

    def __len__(self) -> int:
        return len(self.magnifications)

    def __getitem__(self, index: int) -> Sample:
        """One row, to be read by its properties.

        Raises:
            IndexError: ``index`` is not in 0 ... len - 1.
            ZoomfeatError: reading a property, that its file is damaged; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        at = int(np.searchsorted(self._ends, index, side="right"))
        part = self._contents[at]
        row = int(index - self._ends[at]) + len(part.magnifications)
        return Sample(part.file, row, self.ladder.steps[self.magnifications[index]], part.slide)


@dataclass(frozen=True, eq=False)
class _Contents:
    """A file and what is known of its rows without reading them."""

    file: Path
    slide: str
    magnifications: NDArray[np.int16]


def _common(folder: Path, sets: Sequence[Path], indices: Sequence[Index]) -> dict[str, Any]:
    """What all sets were made with."""
    first = indices[0].configuration
    for name in ("domain", "ssl_encoder", "ssl_weights_hash", "ssl_settings", "first_stage"):
        if differing := [
            part.name for part, i in zip(sets, indices, strict=True) if i.configuration.get(name) != first.get(name)
        ]:
            raise ZoomfeatError(
                f"sets with another {name} side by side: {sets[0].name} and {', '.join(differing)}",
                path=folder,
                cure="Prepare them with the same domain, ssl_encoder and first_stage, or give one of them",
            )
    return {k: v for k, v in first.items() if all(index.configuration.get(k) == v for index in indices)}


def _indexed(folder: Path, index: Index, ladder: Ladder) -> Iterator[_Contents]:
    for record in index.slides.values():
        for shard in record.shards:
            file = folder / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                problem = "missing" if size is None else f"damaged: {size} bytes, where {shard.bytes} were written"
                raise ZoomfeatError(problem, path=file, cure=_REPAIR)
            step = ladder[shard.magnification]
            yield _Contents(file, record.slide, np.full(shard.rows, step.index, np.int16))


def _unindexed(file: Path, ladder: Ladder) -> _Contents:
    steps = [_step(value, ladder) for value in _open(file).values("mag")]
    return _Contents(file, "", np.array([step.index for step in steps], np.int16))


def _step(value: Any, ladder: Ladder) -> Magnification:
    if isinstance(value, int) and 0 <= value < len(ladder.steps):
        return ladder.steps[value]
    return ladder[value]


def pooled(grid: NDArray[np.floating]) -> NDArray[np.float32]:
    """A grid ``(C, h, w)`` of embeddings, average-pooled to at most 8 x 8, float32."""
    values = torch.tensor(np.asarray(grid, np.float32))
    size = (min(values.shape[1], MAX_GRID), min(values.shape[2], MAX_GRID))
    return functional.adaptive_avg_pool2d(values, size).numpy()


class _Rows:
    """A file of rows, read a cell at a time: Arrow is mapped, of Parquet the last row groups are kept."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._parquet = None
        with self._refusing():
            if file.suffix == ".parquet":
                self._parquet = parquet.ParquetFile(file, memory_map=True)
                self._names = self._parquet.schema_arrow.names
                metadata = self._parquet.metadata
                self._ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
                self._group = lru_cache(maxsize=4)(self._read_group)
            else:
                self._table = _mapped(file)
                self._names = self._table.column_names

    def cell(self, column: str, row: int) -> pa.Array | None:
        """One value as an array of length 1; None where there is no such column."""
        if column not in self._names:
            return None
        if self._parquet is None:
            values = self._table.column(column)
        else:
            group = int(np.searchsorted(self._ends, row, side="right"))
            values = self._group(group, column)
            row += len(values) - int(self._ends[group])
        return values.slice(row, 1).combine_chunks()

    def values(self, column: str) -> list[Any]:
        """All values of a column of small values."""
        if column not in self._names:
            raise _without(column, self._file)
        with self._refusing():
            table = self._table if self._parquet is None else self._parquet.read([column])
            return table.column(column).to_pylist()

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        assert self._parquet is not None
        with self._refusing():
            return self._parquet.read_row_group(group, columns=[column]).column(column)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            problem = f"not a readable shard ({str(error).splitlines()[0]})"
            raise ZoomfeatError(problem, path=self._file, cure=_REPAIR) from error


_open = lru_cache(maxsize=_OPEN_FILES)(_Rows)  # of the process and not of a set, which goes to other processes


def _mapped(file: Path) -> pa.Table:
    """An Arrow file, or the stream that `datasets` saves, without reading it."""
    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _without(column: str, file: Path) -> ZoomfeatError:
    return ZoomfeatError(f"no column {column!r}", path=file, cure="Needed are image, ssl_feat and mag")


def _is_list(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _numpy(cell: pa.Array) -> np.ndarray:
    """The one value of a cell of nested lists as an array; the lists of each depth have one length."""
    values = cell.storage if isinstance(cell, pa.ExtensionArray) else cell
    shape = []
    while _is_list(values.type):
        count = len(values)
        values = values.flatten()
        shape.append(len(values) // count)
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _as_uint8(values: np.ndarray) -> NDArray[np.uint8]:
    """Pixels channels last, 0 to 255, from whichever of the usual orders and ranges they are in."""
    if values.ndim == 3 and values.shape[0] == 3:
        values = values.transpose(1, 2, 0)
    if np.issubdtype(values.dtype, np.floating):
        low, scale = (-1, 127.5) if values.min() < 0 else (0, 255)
        values = np.rint((values - low) * scale)
    return np.clip(values, 0, 255).astype(np.uint8)
