"""What can go wrong, as a small tree; every error says what was found and what helps.

A message is one line: the file, what was found, what was expected. The cure is the option or the
command that helps; it is a field of its own so that reports can print it in a column of its own.
"""

from __future__ import annotations

from pathlib import Path


class ZoomfeatError(Exception):
    """Base of all errors that zoomfeat raises on purpose.

    Args:
        problem: what was found and what was expected, one line without a final stop.
        cure: the option, command or action that helps, one line without a final stop.
        path: the file the problem is about.
    """

    def __init__(self, problem: str, *, cure: str = "", path: str | Path | None = None) -> None:
        self.problem = problem if path is None else f"{path}: {problem}"
        self.cure = cure
        self.path = None if path is None else Path(path)
        super().__init__(problem)

    def __str__(self) -> str:
        return f"{self.problem}. {self.cure}." if self.cure else f"{self.problem}."


class ConfigurationError(ZoomfeatError):
    """A key, a value or a combination of them that cannot be run."""


class SlideUnreadableError(ZoomfeatError):
    """A slide that does not open, or a region of it that does not decode."""


class MagnificationError(ZoomfeatError):
    """A magnification that does not exist, or that the slide cannot serve."""


class NoTissueError(ZoomfeatError):
    """A slide on which no patch holds enough tissue."""


class BagInvalidError(ZoomfeatError):
    """An HDF5 file that is not a complete zoomfeat bag."""


class CheckpointMismatchError(ZoomfeatError):
    """Weights that do not fit the model they are loaded into, or that are unsafe to load."""
