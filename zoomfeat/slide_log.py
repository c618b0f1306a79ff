"""A log a slide: which stage was entered when, by which process, and what went wrong; written as it happens."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import make_folder

log = logging.getLogger("zoomfeat")
log.setLevel(logging.INFO)


@contextmanager
def slide_log(folder: Path, slide_id: str) -> Iterator[None]:
    """Appends what is logged in a block to ``folder/slide_id.log``, warnings of libraries too.

    One slide at a time in a process. A log that cannot be written never ends the work that it is about.
    """
    try:
        handler = logging.FileHandler(make_folder(folder) / f"{slide_id}.log", encoding="utf-8")
    except (OSError, ZoomfeatError):
        yield
        return
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        log.info("process %d on %s", os.getpid(), socket.gethostname())
        yield
    finally:
        root.removeHandler(handler)
        try:
            handler.close()
        except OSError:  # a full disk
            return
