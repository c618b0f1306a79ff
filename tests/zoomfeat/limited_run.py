"""A run of ``config`` under limits, for a process of its own: tests run this file with these names set.

``megabytes``: how much more memory the process may take (RLIMIT_AS), while each patch takes 256 MB; None: any.
``environment``: variables that are set before HDF5 opens its first file.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from zoomfeat.commands.extract import extract_all
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.color import ColorStats
from zoomfeat.slides import slides

if __name__ == "__main__":
    config, megabytes, environment = (globals()[name] for name in ("config", "megabytes", "environment"))

    class LimitedEncoder(ColorStats):
        """Takes 256 MB a patch, really."""

        def __call__(self, images, context=None):
            np.empty((len(images), 2**28), np.uint8)
            return super().__call__(images, context)

    os.environ |= environment
    encoder = load_encoder("color-stats", device="cpu")
    if megabytes is not None:
        encoder = LimitedEncoder(device="cpu")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    reports = extract_all(slides(config.slides), config, [encoder], Console(quiet=True))
    sys.exit(any(report.status == "failed" for report in reports))
