"""Faults, each injected: whatever happens, bags are whole or absent, and the same command again ends with all of them.

Every fault runs a few times here; the slow test runs each many times and writes the table of docs/reliability.md to
``build/faults.md``.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.zoomfeat import faults
from tests.zoomfeat.fault_bench import Bench, read_bags
from zoomfeat.commands.extract import run as extract
from zoomfeat.conf.compose import compose_config
from zoomfeat.slides.synthetic import make_slide

ROOT = Path(__file__).parents[2]

FAULTS = {
    "process killed (SIGKILL, random moment)": (faults.process_killed, 3, 100),
    "Dask worker killed (SIGKILL, random moment)": (faults.worker_killed, 2, 100),
    "Dask scheduler killed (SIGKILL)": (faults.scheduler_killed, 0, 5),
    "disk full": (faults.disk_full, 2, 20),
    "output turns read-only": (faults.output_read_only, 1, 10),
    "region in the middle unreadable": (faults.region_unreadable, 1, 20),
    "slide truncated": (faults.slide_truncated, 2, 20),
    "reader hangs (`slide_timeout`)": (faults.reader_hangs, 0, 5),
    "reader crashes (SIGSEGV, with `slide_timeout`)": (faults.reader_crashes, 0, 5),
    "out of memory, as a GPU says it": (faults.gpu_out_of_memory, 2, 10),
    "out of memory (RLIMIT_AS)": (faults.memory_limited, 1, 10),
    "files locked (`HDF5_USE_FILE_LOCKING=TRUE`)": (faults.files_locked, 1, 10),
    "clocks differ by up to a day": (faults.clocks_differ, 1, 10),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", [name for name, (_, few, _) in FAULTS.items() if few])
def test_nothing_is_lost_repeated_or_broken(bench, name):
    fault, few, _ = FAULTS[name]
    tally = fault(bench, few)
    assert tally.is_clean, tally


@pytest.mark.slow
@pytest.mark.timeout(10_000)
def test_the_table_of_faults(bench):
    share = float(os.environ.get("FAULT_TRIALS", "1"))  # of the trials of each fault
    lines = ["| fault | trials | lost | duplicated | corrupt |", "|---|---|---|---|---|"]
    unclean = []
    for name, (fault, _, many) in FAULTS.items():
        tally = fault(bench, max(1, round(share * many)))
        lines.append(f"| {name} | {tally.trials} | {tally.lost} | {tally.duplicated} | {tally.corrupt} |")
        print(lines[-1], flush=True)
        if not tally.is_clean:
            unclean.append(name)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "faults.md").write_text("\n".join(lines) + "\n")
    assert not unclean


@pytest.mark.slow
@pytest.mark.timeout(10_000)
def test_two_hundred_slides_with_one_of_two_workers_killed_half_way(tmp_path):
    count = int(os.environ.get("COHORT_SLIDES", "200"))
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed in range(count):
        make_slide(folder / f"slide-{seed:03d}.tiff", seed=seed, size=(768, 768), mpp=0.5)
    given = [f"slides={folder}", "encoder=color-stats", "preview=false", "device=cpu"]
    local = compose_config("extract", [*given, f"out={tmp_path / 'local'}"])
    spread = compose_config("extract", [*given, f"out={tmp_path / 'dask'}", "engine=dask", "engine.workers=2"])
    assert extract(local) == 0
    killed = []

    def kill_half_way() -> None:
        while len(read_bags(tmp_path / "dask")) < count // 2:
            time.sleep(0.05)
        while not killed:
            for path in (tmp_path / "dask" / ".claims").glob("*.claim"):
                try:
                    process = json.loads(path.read_text())["process"]
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    return
                except (OSError, ValueError):
                    continue

    killer = threading.Thread(target=kill_half_way, daemon=True)
    killer.start()
    assert extract(spread) == 0
    assert len(killed) == 1
    assert read_bags(tmp_path / "dask") == read_bags(tmp_path / "local")
    assert len(read_bags(tmp_path / "local")) == count
