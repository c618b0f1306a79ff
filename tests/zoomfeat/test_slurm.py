"""Extraction by jobs of a real SLURM; ``benchmarks/slurm/one_machine.sh`` starts one on any machine.

sh benchmarks/slurm/one_machine.sh start FOLDER
SLURM_CONF=FOLDER/slurm.conf pytest -m slurm tests/zoomfeat/test_slurm.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from zoomfeat.commands.extract import run as extract
from zoomfeat.conf.compose import compose_config
from zoomfeat.slides.synthetic import make_slide

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]

SLIDES = int(os.environ.get("COHORT_SLIDES", "200"))


@pytest.fixture(scope="module")
def two_nodes() -> None:
    if shutil.which("sinfo") is None:
        pytest.skip("no SLURM is installed: apt-get install slurm-wlm munge")
    found = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle"], capture_output=True, text=True, check=False
    )
    if len(found.stdout.splitlines()) < 2:
        pytest.skip(f"no two idle nodes: start them with benchmarks/slurm/one_machine.sh ({found.stderr.strip()})")


def read_bags(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def running_jobs() -> list[str]:
    jobs = ["squeue", "--noheader", "--states=running", "--name=zoomfeat", "--format=%i"]
    return subprocess.run(jobs, capture_output=True, text=True, check=True).stdout.split()


def test_jobs_make_the_bags_of_one_process_though_one_is_cancelled(two_nodes, tmp_path, capsys):
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed in range(SLIDES):
        make_slide(folder / f"slide-{seed:03d}.tiff", seed=seed, size=(768, 768), mpp=0.5)
    given = [f"slides={folder}", "encoder=color-stats", "preview=false", "device=cpu"]
    assert extract(compose_config("extract", [*given, f"out={tmp_path / 'local'}"])) == 0
    keys = ["engine=slurm", "engine.jobs=2", "engine.cores=1", "engine.memory=2GB", "engine.walltime=00:30:00"]
    cancelled = []

    def cancel_half_way() -> None:
        while len(read_bags(tmp_path / "slurm")) < SLIDES // 2:
            time.sleep(0.2)
        cancelled.extend(running_jobs()[:1])
        subprocess.run(["scancel", "--signal=KILL", "--full", *cancelled], check=True)

    canceller = threading.Thread(target=cancel_half_way, daemon=True)
    canceller.start()
    assert extract(compose_config("extract", [*given, *keys, f"out={tmp_path / 'slurm'}"])) == 0
    assert f"{SLIDES} slides: {SLIDES} done, 0 existed, 0 failed" in capsys.readouterr().out
    assert len(cancelled) == 1
    assert read_bags(tmp_path / "slurm") == read_bags(tmp_path / "local")
    assert len(read_bags(tmp_path / "local")) == SLIDES
    jobs = list((tmp_path / "slurm" / "logs" / "jobs").glob("*.err"))
    assert len(jobs) >= 2
