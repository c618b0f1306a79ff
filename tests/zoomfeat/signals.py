"""Signals to whoever works on a slide, for tests of faults."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path


def send_once_at_work(out: Path, slide_id: str, sent: signal.Signals) -> None:
    """Sends a signal to the process that works on a slide."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        try:
            os.kill(json.loads((out / ".claims" / f"{slide_id}.claim").read_text())["process"], sent)
            return
        except (OSError, ValueError):  # not yet, or its claim is just being written
            time.sleep(0.002)
