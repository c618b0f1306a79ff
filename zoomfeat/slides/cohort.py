"""Which slides a run is about: a folder of them, one file, or a CSV manifest."""

from __future__ import annotations

import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from zoomfeat.errors import ConfigurationError

SLIDE_SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".svslide",
    ".bif",
    ".vms",
    ".vmu",
    ".czi",
    ".dcm",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
)
"""What a file must end in to be taken for a slide: the formats of OpenSlide 4, then plain images."""

_LONG_SUFFIXES = (".ome.tif", ".ome.tiff")  # removed whole from a slide id
_LONGEST_ID = 200  # bytes; a file system takes 255, and a bag in the making has a longer name than a whole one
# What no file name may hold on Windows, where a colon even leads to another file, and control characters. Bags of
# one system are read on others, and folders are shared between them.
_FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows' own
# What pydicom raises for damaged files depends on where the damage lies; the fuzzing of tests/ found these.
_DAMAGED_DICOM = (
    InvalidDicomError, BytesLengthException, OSError, ValueError, LookupError, TypeError, AttributeError,
    NotImplementedError, MemoryError, struct.error,
)  # fmt: skip
_MANIFEST_CURE = "List the slides in a CSV manifest with the columns path and slide_id"


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a cohort, not yet opened.

    Attributes:
        slide_id: what its bag is named after.
        path: the file; for a DICOM series, its first file.
        mpp: um/px along x and y where the user says so; wins over the file's own.
    """

    slide_id: str
    path: Path
    mpp: tuple[float, float] | None = None


def slides(source: str | Path) -> list[SlideEntry]:
    """The slides of a folder, of a CSV manifest, or the one slide that a file is.

    Every name is one that a bag can have on any system, so that no bag lies outside its folder.

    Raises:
        ConfigurationError: there is no such file or folder, or see `find_slides` and `read_manifest`.
    """
    source = Path(source)
    if source.is_dir():
        return find_slides(source)
    if not source.exists():
        raise ConfigurationError(
            "no such file or folder", cure="Give a folder of slides, a slide, or a .csv manifest", path=source
        )
    if source.suffix.lower() == ".csv":
        return read_manifest(source)
    entry = SlideEntry(slide_id_of(source), source)
    if problem := _id_problem(entry.slide_id) or _path_problem(source):
        raise ConfigurationError(f"{problem}", cure=_MANIFEST_CURE, path=source)
    return [entry]


def check_apart(entries: Iterable[SlideEntry], out: str | Path) -> None:
    """Refuses an output folder in which raw slides lie: nothing is ever written beside them.

    Raises:
        ConfigurationError: it is the folder of a slide.
    """
    place = os.path.realpath(out)
    for folder in {entry.path.parent for entry in entries}:
        if os.path.realpath(folder) == place:
            raise ConfigurationError(
                "slides lie in this folder, which is to hold the results",
                cure="Keep raw slides apart from results: choose another out=",
                path=out,
            )


def slide_id_of(path: Path) -> str:
    """The name of a file without the suffix of its format; other dots stay (``TCGA-A1.01Z.uuid.svs``)."""
    name = path.name.lower()
    for suffix in _LONG_SUFFIXES + SLIDE_SUFFIXES:
        if name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def find_slides(folder: str | Path) -> list[SlideEntry]:
    """All slides in a folder and the folders below it, sorted by path.

    The files of a DICOM series in one folder are one slide, named after the folder if nothing else is in it.
    The data folder of an MRXS slide, the pictures of a VMS slide and hidden files are not slides of their own.

    Raises:
        ConfigurationError: the folder is missing, cannot be listed, or holds no slide; or two have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError("no such folder", cure="Give the folder that holds the slides", path=folder)
    entries = [entry for files in _walk(folder) for entry in _entries_of_folder(files)]
    if not entries:
        raise ConfigurationError(
            "no slides in this folder or below it",
            cure=f"Slides are files that end in {' '.join(SLIDE_SUFFIXES)}; others go into a manifest",
            path=folder,
        )
    entries.sort(key=lambda entry: entry.path)
    seen: dict[str, Path] = {}
    for entry in entries:
        if problem := _id_problem(entry.slide_id) or _path_problem(entry.path):
            raise ConfigurationError(
                f"{str(entry.path.relative_to(folder))!a}: {problem}",
                cure="Rename it, or list the slides in a CSV manifest with the columns path and slide_id",
                path=folder,
            )
        name = entry.slide_id.casefold()  # one file on many a file system
        if name in seen:
            raise ConfigurationError(
                f"two slides are called {entry.slide_id!r}: {seen[name]} and {entry.path}",
                cure=_MANIFEST_CURE,
                path=folder,
            )
        seen[name] = entry.path
    return entries


def read_manifest(csv_path: str | Path) -> list[SlideEntry]:
    """The slides listed in a CSV file, in its order.

    Columns: ``path`` (absolute, or relative to the CSV), and if wanted ``slide_id``, and ``mpp`` or ``mpp_x`` and
    ``mpp_y`` in um/px. Further columns are ignored; cells other than ``path`` may be blank. Whether the files
    exist is not checked here: a missing one is one failed slide, not a failed run.

    Raises:
        ConfigurationError: the file is no such table, or a row of it cannot be used.
    """
    csv_path = Path(csv_path)
    try:
        table = pd.read_csv(csv_path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ConfigurationError(
            f"not a readable CSV table ({error})", cure="Save it as comma-separated UTF-8", path=csv_path
        ) from error
    table.columns = table.columns.astype(str).str.strip().str.lower()
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise ConfigurationError(f"two columns are called {twice!r}", cure="Give each its own name", path=csv_path)
    mpp_columns = [name for name in ("mpp", "mpp_x", "mpp_y") if name in table]
    if "path" not in table:
        raise ConfigurationError(
            f"no column 'path' among {', '.join(table.columns)}", cure="Name the column of files path", path=csv_path
        )
    if mpp_columns not in ([], ["mpp"], ["mpp_x", "mpp_y"]):
        raise ConfigurationError(
            f"the columns {', '.join(mpp_columns)} do not go together",
            cure="Give either mpp, or both mpp_x and mpp_y",
            path=csv_path,
        )
    if table.empty:
        raise ConfigurationError("no rows", cure="List at least one slide", path=csv_path)

    entries: list[SlideEntry] = []
    seen: dict[str, str] = {}
    for number, cells in enumerate(table.to_dict("records"), start=2):  # line 1 is the header
        row = {str(name): str(cell).strip() for name, cell in cells.items()}
        where = f"row {number}"
        if not row["path"]:
            raise ConfigurationError(f"{where} has no path", cure="Fill it in or remove the row", path=csv_path)
        path = csv_path.parent / _home(row["path"])
        slide_id = row.get("slide_id") or slide_id_of(path)
        if problem := _id_problem(slide_id) or _path_problem(path):
            raise ConfigurationError(
                f"{where}: {slide_id!r} cannot name a bag: {problem}",
                cure="Give the row another slide_id, for example its number",
                path=csv_path,
            )
        name = slide_id.casefold()  # one file on many a file system
        if name in seen:
            raise ConfigurationError(
                f"{where} and {seen[name]} are both called {slide_id!r}",
                cure="Give each its own slide_id",
                path=csv_path,
            )
        seen[name] = where
        entries.append(SlideEntry(slide_id, path, _mpp_of_row([row[c] for c in mpp_columns], where, csv_path)))
    return entries


def _walk(folder: Path) -> Iterator[list[Path]]:
    """The slide-like files of each folder, sorted; hidden ones and the data folders of MRXS slides left out."""

    def refuse(error: OSError) -> None:
        raise ConfigurationError(f"cannot be listed ({error})", cure="Check its permissions", path=error.filename)

    for place, folders, names in os.walk(folder, onerror=refuse):
        mrxs = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in mrxs)
        # A VMS slide keeps its pixels in JPEGs beside it whose names begin like its own.
        vms = tuple(Path(name).stem for name in names if name.lower().endswith(".vms"))
        yield [
            Path(place, name)
            for name in sorted(names)
            if name.lower().endswith(SLIDE_SUFFIXES)
            and not name.startswith(".")
            and not (name.lower().endswith(".jpg") and name.startswith(vms))
        ]


def _entries_of_folder(files: list[Path]) -> list[SlideEntry]:
    """The slides among the files of one folder; those of one DICOM series are one slide."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        groups[_dicom_series(path) or str(path)].append(path)
    if len(groups) == 1 and str(files[0]) not in groups:
        return [SlideEntry(files[0].parent.resolve().name, files[0])]
    return [SlideEntry(slide_id_of(group[0]), group[0]) for group in groups.values()]


def _dicom_series(path: Path) -> str | None:
    """The series of a DICOM file; None for other files, and where it states none (opening it says what is wrong)."""
    if path.suffix.lower() != ".dcm" or not path.is_file():  # a pipe would keep the run waiting
        return None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        series = header.get("SeriesInstanceUID")
    except _DAMAGED_DICOM:
        return None
    return str(series) if series else None


def _id_problem(slide_id: str) -> str:
    """Why no bag can be called so; nothing where one can. An id is a plain file name on every system."""
    if not slide_id or slide_id.startswith("."):
        return "a slide id is not empty and does not start with a dot"
    if found := _FORBIDDEN.search(slide_id):
        return f'a slide id holds no {found[0]!r}, nor any of / \\ < > : " | ? * and control characters'
    if _DEVICES.fullmatch(slide_id):
        return "Windows keeps this name for a device"
    if len(os.fsencode(slide_id)) > _LONGEST_ID:
        return f"a slide id has at most {_LONGEST_ID} bytes, this one has {len(os.fsencode(slide_id))}"
    return ""


def _path_problem(path: Path) -> str:
    """Why a path cannot stand in a report; nothing where it can."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its path is not UTF-8"
    return "its path holds a NUL character" if "\0" in str(path) else ""


def _home(text: str) -> Path:
    """The path, from the user's home folder where it begins with ``~`` and there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user: then it is a file's name
        return Path(text)


def _mpp_of_row(cells: Iterable[str], where: str, csv_path: Path) -> tuple[float, float] | None:
    """The cells of the mpp columns, one or two of them, as um/px along x and y; None where all are blank."""
    texts = list(cells)
    if not any(texts):
        return None
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = [math.nan]
    if not all(0 < value < math.inf for value in values):
        raise ConfigurationError(
            f"{where}: um/px must be a positive number, not {', '.join(map(repr, texts))}",
            cure="Write it like 0.25, or leave it blank to use what the file says",
            path=csv_path,
        )
    return values[0], values[-1]
