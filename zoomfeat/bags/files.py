"""Opening HDF5 files without surprises: damage found at opening or later is a one-line error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from zoomfeat.apart import Apart
from zoomfeat.errors import BagInvalidError, ZoomfeatError

NOT_A_BAG_CURE = "`zoomfeat convert` reads the TRIDENT, CLAM, STAMP and torchmil layouts into bags"
INCOMPLETE_CURE = "Delete the file and extract the slide again"

DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py (and PyTorch) raises for bytes that make no sense: which of them depends on where the damage lies."""

_SMALL = 2**26  # bytes
_MOST_EXPANSION = 100  # features and coordinates compress a few times at best

TRIAL_SECONDS = 60.0
"""How long the header of a file may take where it is tried first."""

_trials = Apart()
_tried: dict[Path, tuple[int, int]] | None = None  # size and time of change; None: files are not tried


@contextmanager
def trying_first() -> Iterator[None]:
    """For commands that open files of strangers: within it every file that `reading` opens is tried apart first.

    From some damaged files libhdf5 does not return, and nothing ends a call into it but the end of its process.
    """
    global _tried
    before, _tried = _tried, {}
    try:
        yield
    finally:
        _tried = before


def _try(path: Path) -> None:
    """Opens a file in a process of its own, once, where files are tried.

    Raises:
        BagInvalidError: that process did not return, or ended.
    """
    if _tried is None:
        return
    found = path.stat()
    state = found.st_size, found.st_mtime_ns
    if _tried.get(path) == state:
        return
    try:
        _trials.call(_read_header, path, TRIAL_SECONDS)
    except ZoomfeatError as error:
        raise BagInvalidError(f"the HDF5 file is damaged ({error.problem})", cure=INCOMPLETE_CURE, path=path) from error
    _tried[path] = state


def _read_header(path: Path) -> None:
    """Reads all but the values of data sets; errors are for who opens the file next."""
    with suppress(BagInvalidError), reading(path) as file:
        dict(file.attrs)
        for name in file:
            if isinstance(file.get(name, getlink=True), h5py.HardLink):
                dict(file[name].attrs)
                if isinstance(file[name], h5py.Dataset):
                    file[name].id.get_storage_size()  # goes through the index of chunks


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file opened for reading; damage found at opening or later is one error.

    Raises:
        BagInvalidError: the file is missing, not HDF5, truncated or damaged.
    """
    if not path.is_file():
        raise BagInvalidError("no such file", cure="Check the path", path=path)
    _try(path)
    try:
        # Finished bags never change in place, and locks fail on many network file systems.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DAMAGE as error:
        if isinstance(error, PermissionError):
            raise BagInvalidError("not readable", cure="Check its permissions", path=path) from error
        if not h5py.is_hdf5(path):
            raise BagInvalidError(
                "not an HDF5 file, expected a zoomfeat bag", cure=NOT_A_BAG_CURE, path=path
            ) from error
        reason = " ".join(str(error).split())
        raise BagInvalidError(
            f"the HDF5 file is truncated or damaged ({reason})", cure=INCOMPLETE_CURE, path=path
        ) from error


def require_dataset(
    file: h5py.File,
    name: str,
    path: Path,
    *,
    shape: tuple[int | None, ...],
    dtypes: Sequence[str] = (),
    cure: str = NOT_A_BAG_CURE,
) -> h5py.Dataset:
    """The data set of that name, stored in this very file, of that shape and type.

    Args:
        file: an open file.
        name: of a data set in its root.
        path: of the file, for messages.
        shape: the expected lengths; None stands for any.
        dtypes: the NumPy types that are accepted; empty for any numbers.
        cure: what helps where the data set is missing.

    Raises:
        BagInvalidError: it is missing, a group, a link, stored elsewhere or not fully, or of another shape or type.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise BagInvalidError(f"no data set {name!r}", cure=cure, path=path)
    # A link can lead out of the file to anything that the reading user may open.
    if not isinstance(link, h5py.HardLink):
        raise BagInvalidError(f"{name!r} is a link, expected a data set in the file itself", cure=cure, path=path)
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise BagInvalidError(f"{name!r} is a group, expected a data set", cure=cure, path=path)
    if dataset.external or dataset.is_virtual:
        raise BagInvalidError(
            f"{name!r} is stored outside the file, expected a data set in the file itself", cure=cure, path=path
        )
    expected_type = " or ".join(dtypes) or "numbers"
    if dataset.dtype.kind not in "iuf" or (dtypes and dataset.dtype not in map(np.dtype, dtypes)):
        raise BagInvalidError(f"{name!r} has type {dataset.dtype}, expected {expected_type}", cure=cure, path=path)
    if len(dataset.shape) != len(shape) or any(
        wanted is not None and found != wanted for found, wanted in zip(dataset.shape, shape, strict=True)
    ):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise BagInvalidError(
            f"{name!r} has shape {dataset.shape}, expected ({expected})", cure=INCOMPLETE_CURE, path=path
        )
    stored = dataset.id.get_storage_size()
    if dataset.chunks is not None and dataset.nbytes > max(_SMALL, _MOST_EXPANSION * stored):
        raise BagInvalidError(
            f"{name!r} would expand from {stored} bytes to {dataset.nbytes}", cure=INCOMPLETE_CURE, path=path
        )
    if dataset.chunks is None and stored < dataset.nbytes:
        raise BagInvalidError(f"{name!r} was never written to the end", cure=INCOMPLETE_CURE, path=path)
    return dataset
