"""Writing files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoomfeat.errors import ZoomfeatError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, synced, when the block ends without an error.

    A reader sees the old file, the new one, or none, and never a part of one: a process that is killed
    leaves at most a hidden ``.tmp`` file behind.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary path, in the same folder so that the rename stays within one file system.

    Raises:
        ZoomfeatError: the folder is missing or read-only, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # h5py and torch raise the latter where the disk is full
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ZoomfeatError(
            f"cannot be written ({reason})",
            cure="Check that its folder exists, is writable and has space left",
            path=path,
        ) from error
    finally:
        with suppress(OSError):  # gone after the rename, or never made
            temporary.unlink()


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        ZoomfeatError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZoomfeatError(
            f"the folder cannot be made ({error.strerror})", cure="Choose a writable folder", path=folder
        ) from error
    return folder


def sync(path: Path) -> None:
    """Wait until what was written to a file, or renamed in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def guarded(text: str) -> str:
    """Text from outside as a cell of a CSV that no spreadsheet runs as a formula.

    A file may be called ``=HYPERLINK(...)``, and who opens a report in a spreadsheet would run it. Such text gets an
    apostrophe in front, which spreadsheets take as "this is text" (OWASP, CSV injection); all other text stays.
    """
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA_STARTS) else text


def unguarded(text: str) -> str:
    """The inverse of `guarded`, for any text."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA_STARTS) else text
