"""Who works on which slide: claims that every process on every machine sees, and that end with their process.

A claim is a file. It is made in one step that only one process can win, its holder touches it as long as it lives,
and others may take it over when that stops. Times are those of the file system alone (the claim's against a file that
was touched just now), so that machines whose clocks differ agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import make_folder

HEARTBEAT = 20.0
"""Seconds between two touches of a claim."""
EXPIRES = 180.0
"""Seconds without one after which a claim is nobody's; network file systems show times up to a minute late."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim.

    Attributes:
        host: name of its machine.
        machine: which start of which machine, or container, its number is of; empty where the system does not say.
        process: its number.
        started: when it was started, as the system counts, since numbers are used again.
    """

    host: str
    machine: str
    process: int
    started: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it certainly runs no more; only known on its own machine."""
        return bool(self.machine) and self.machine == _machine() and _started(self.process) != self.started


def this_process() -> Holder:
    """What this process calls itself in its claims."""
    return Holder(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or "")


class Claims:
    """The claims of a folder.

    Args:
        folder: that holds their files; made when the first claim is.
        heartbeat: seconds between two touches.
        expires: seconds without one after which others may take a claim over.
    """

    def __init__(self, folder: Path, heartbeat: float = HEARTBEAT, expires: float = EXPIRES) -> None:
        self.folder = folder
        self.heartbeat = heartbeat
        self.expires = expires

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Holds a claim for the length of a block.

        Yields:
            True where it is this process's, False where another one holds it.

        Raises:
            ZoomfeatError: the folder cannot be written to.
        """
        path = self._path(name)
        make_folder(self.folder)
        descriptor = _make(path)
        if descriptor is None:
            descriptor = self._take_over(path)
        if descriptor is None:
            yield False
            return
        ended = Event()
        touching = Thread(target=self._touch, args=(descriptor, ended), name=f"claim {name}", daemon=True)
        touching.start()
        try:
            yield True
        finally:
            ended.set()
            touching.join()
            _lock(descriptor)
            if _is_at(path, descriptor):  # not if it was taken over while this process was halted
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)

    def holder(self, name: str) -> Holder | None:
        """Who holds a claim; None where nobody does, or its file is just being made."""
        return _read(self._path(name))

    def held(self) -> list[str]:
        """Names whose claim is held by a process that lives."""
        paths = sorted(self.folder.glob("*.claim"))
        return [path.stem for path in paths if path.exists() and not self._is_expired(path, _read(path))]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _take_over(self, path: Path) -> int | None:
        """The open file of this process's claim in the place of an expired one; None where others hold it."""
        if not self._is_expired(path, _read(path)):
            return None
        try:
            old = os.open(path, os.O_RDWR)
        except OSError:  # its holder ended, or somebody else took over and has ended
            return None
        try:
            # Under its lock an expired claim is replaced, or removed by its holder, only once; as it is replaced in
            # one step, nobody finds the place empty meanwhile.
            _lock(old)
            if not _is_at(path, old) or not self._is_expired(path, _read(path)):
                return None
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            descriptor = _make(fresh)
            fresh.replace(path)
            return descriptor
        finally:
            os.close(old)

    def _touch(self, descriptor: int, ended: Event) -> None:
        while not ended.wait(self.heartbeat):
            with suppress(OSError):  # a network that is away for a moment
                os.utime(descriptor)

    def _is_expired(self, path: Path, holder: Holder | None) -> bool:
        if holder is not None and holder.is_gone:
            return True
        try:
            age = file_time(self.folder) - path.stat().st_mtime
        except OSError:
            return False
        return abs(age) > self.expires  # a time in the future stood still as well, while the server's was set back


def file_time(folder: Path) -> float:
    """What time it is for the file system of a folder, in seconds.

    Raises:
        OSError: the folder cannot be written to.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno())  # of a network file system, its server's time
        return os.fstat(file.fileno()).st_mtime


def sweep(folder: Path, pattern: str = ".*.tmp", unchanged_for: float = 0) -> list[Path]:
    """Deletes temporary files that killed processes left behind.

    Args:
        folder: where; not below it.
        pattern: of their names.
        unchanged_for: seconds since their last change; others are somebody's who still writes.

    Returns:
        What is gone.
    """
    gone: list[Path] = []
    paths = list(folder.glob(pattern))
    if not paths:
        return gone
    with suppress(OSError):  # a folder that cannot be written to is reported by who must write
        now = file_time(folder)
        for path in paths:
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime >= unchanged_for:
                    path.unlink()
                    gone.append(path)
    return gone


def _make(path: Path) -> int | None:
    """The open file of a fresh claim; None where there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return None
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        os.write(descriptor, json.dumps(asdict(this_process())).encode())
        os.utime(descriptor)
    except OSError as error:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return descriptor


def _unwritable(path: Path, error: OSError) -> ZoomfeatError:
    return ZoomfeatError(
        f"the claim cannot be written ({error.strerror})",
        cure="Check that its folder is writable and has space left",
        path=path,
    )


def _lock(descriptor: int) -> None:
    """Locks an open claim's file until it is closed, if only by the end of its process.

    Where the file system knows no locks, two that take over the same expired claim in the same moment may both win.
    """
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that has its path now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str | None:
    """When a process of this machine was started; None where it runs no more."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # proc_pid_stat(5): state, and start time in clock ticks
