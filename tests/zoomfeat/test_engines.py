"""Engines: the same bags whoever makes them; two runs share a folder; what hangs, ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from tests.zoomfeat.signals import send_once_at_work
from zoomfeat import extraction
from zoomfeat.commands.extract import extract_all
from zoomfeat.commands.extract import run as extract
from zoomfeat.commands.status import run as status
from zoomfeat.commands.verify import check_bag, check_folder
from zoomfeat.conf.schema import JobsConfig, StatusConfig
from zoomfeat.encoders import load_encoder
from zoomfeat.engines.cluster import job_options, seconds_of
from zoomfeat.errors import ConfigurationError
from zoomfeat.run_folder import read_report, read_run
from zoomfeat.slides import slides
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Four synthetic slides of a few patches each."""
    folder = tmp_path_factory.mktemp("small")
    for seed in range(4):
        make_slide(folder / f"slide-{seed}.tiff", seed=seed, size=(768, 768), mpp=0.5)
    return folder


def bags(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def test_two_workers_of_dask_make_the_bags_of_one_process(small, extract_config, tmp_path, capsys):
    assert extract(extract_config(small, "preview=false", out="local")) == 0
    assert extract(extract_config(small, "preview=false", "engine=dask", "engine.workers=2", out="dask")) == 0
    assert "4 slides: 4 done, 0 existed, 0 failed" in capsys.readouterr().out
    assert bags(tmp_path / "dask") == bags(tmp_path / "local")
    assert len(bags(tmp_path / "local")) == 4
    ids = [row["slide_id"] for row in read_report(tmp_path / "dask")]
    assert ids == sorted(ids)  # in the order of the slides, in whichever they ended
    processes = {path.read_text().splitlines()[0] for path in (tmp_path / "dask" / "logs").glob("*.log")}
    assert all(f"process {os.getpid()} " not in line for line in processes)
    assert check_folder(tmp_path / "dask") == []


WORKERS = {
    "one thread reads": ["workers=1"],
    "two threads read": ["workers=2"],
    "two processes": ["engine=dask", "engine.workers=2"],
}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("encoder", "workers"),
    [
        ("color-stats", ["one thread reads", "two threads read"]),
        *(
            pytest.param(encoder, list(WORKERS), marks=pytest.mark.slow)
            for encoder in ("color-stats", "resnet-random", "zoomldm-tiny")
        ),
    ],
)
def test_batches_workers_and_resuming_do_not_change_a_bit(
    small, extract_config, tmp_path, monkeypatch, encoder, workers
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which may decide the last bits
    (tmp_path / "two.csv").write_text(f"path\n{small}/slide-0.tiff\n{small}/slide-1.tiff\n")
    made = []
    for batch, worker, resumed in itertools.product((1, 7, 64), workers, (False, True)):
        words = ("preview=false", "min_tissue=0.05", f"batch_size={batch}", *WORKERS[worker])
        name = f"{batch}-{worker}-{resumed}"
        if resumed:
            extract(extract_config(small / "slide-1.tiff", *words, out=name, encoder=encoder))
        assert extract(extract_config(tmp_path / "two.csv", *words, out=name, encoder=encoder)) == 0
        made.append(bags(tmp_path / name))
        print(f"{encoder}, batch {batch}, {worker}, {'resumed' if resumed else 'at once'}: {len(made[-1])} bags")
    assert len(made[0]) == 2
    assert all(other == made[0] for other in made)


def test_a_run_leaves_its_record_logs_and_summary(small, extract_config, tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text(f"path\n{small}/slide-0.tiff\n{tmp_path}/missing.svs\n")
    assert extract(extract_config(tmp_path / "manifest.csv", "preview=false")) == 1
    out = tmp_path / "bags"
    run = read_run(out)
    assert run["counts"] == {"done": 1, "failed": 1}
    assert run["ended"]
    assert run["versions"]["zoomfeat"]
    assert run["configuration"]["magnifications"] is None
    (encoder_hash,) = run["configuration_hashes"].values()
    assert len(encoder_hash) == 64
    done, failed = read_report(out)
    assert float(done["seconds_encode"]) <= float(done["seconds"])
    assert failed["stage"] == "open"
    assert "done; 20x" in (out / "logs" / "slide-0.log").read_text()
    assert "ERROR" in (out / "logs" / "missing.log").read_text()
    summary = (out / "summary.md").read_text()
    assert "| failed | 1 |" in summary
    assert failed["cure"] in summary
    capsys.readouterr()
    assert status(StatusConfig(str(out))) == 1
    assert "2 of 2 bags, 1 failed." in capsys.readouterr().out


def test_status_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(Exception, match="no such file"):
        status(StatusConfig(str(tmp_path)))


def test_rows_of_other_slides_stay_while_their_bags_do(small, extract_config, tmp_path):
    for name in ("slide-0", "slide-1"):
        extract(extract_config(small / f"{name}.tiff", "preview=false"))
    assert [row["slide_id"] for row in read_report(tmp_path / "bags")] == ["slide-1", "slide-0"]
    (tmp_path / "bags" / "slide-0.h5").unlink()
    extract(extract_config(small / "slide-2.tiff", "preview=false"))
    assert [row["slide_id"] for row in read_report(tmp_path / "bags")] == ["slide-2", "slide-1"]


@pytest.mark.parametrize("mode", ["recompute", "keep"])
def test_bags_of_another_configuration(small, extract_config, tmp_path, capsys, mode):
    slide = small / "slide-0.tiff"
    extract(extract_config(slide, "preview=false"))
    before = bags(tmp_path / "bags")
    words = ("preview=false", "min_tissue=0.2", f"on_mismatch={mode}")
    assert extract(extract_config(slide, *words)) == 0
    printed = capsys.readouterr().out
    after = bags(tmp_path / "bags")
    if mode == "keep":
        assert after == before
        assert "0 done, 0 existed, 1 kept, 0 failed" in printed
        (row,) = read_report(tmp_path / "bags")
        assert "min_tissue: 0.5 there, 0.2 now" in row["error"]
    else:
        assert after != before
        extract(extract_config(slide, "preview=false", "min_tissue=0.2", out="fresh"))
        assert after == bags(tmp_path / "fresh")
    with pytest.raises(ConfigurationError, match="on_mismatch='overwrite'; expected one of refuse, recompute, keep"):
        extract(extract_config(slide, "on_mismatch=overwrite"))


def test_two_runs_share_a_folder_and_repeat_nothing(small, extract_config, tmp_path):
    words = [f"slides={small}", f"out={tmp_path / 'shared'}", "encoder=color-stats", "preview=false"]
    command = [sys.executable, "-m", "zoomfeat.cli", "extract", *words]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    logs = [path.read_text() for path in (tmp_path / "shared" / "logs").glob("*.log")]
    assert len(logs) == 4
    assert all(text.count("INFO write") == 1 for text in logs), logs  # each slide by one of them
    extract(extract_config(small, "preview=false", out="alone"))
    assert bags(tmp_path / "shared") == bags(tmp_path / "alone")
    assert [row["status"] in ("done", "exists") for row in read_report(tmp_path / "shared")] == [True] * 4


def test_a_slide_of_another_run_is_waited_for(small, extract_config, tmp_path, monkeypatch):
    config = extract_config(small, "preview=false")
    encoder = load_encoder("color-stats", device="cpu")
    other = extraction.claims(config).hold("slide-1")
    assert other.__enter__()
    looks = []

    def end_of_the_other(seconds: float) -> None:
        looks.append(seconds)
        other.__exit__(None, None, None)

    # The command's own name for the module: other threads of this process sleep as well.
    monkeypatch.setattr("zoomfeat.commands.extract.time", SimpleNamespace(sleep=end_of_the_other))
    reports = extract_all(slides(small), config, [encoder], Console(quiet=True))
    assert [report.status for report in reports] == ["done"] * 4
    assert len(looks) == 1
    assert [report.slide_id for report in reports] == [f"slide-{i}" for i in range(4)]


def test_leftovers_of_a_killed_process_are_swept(small, extract_config, tmp_path):
    bags_folder = tmp_path / "bags"
    config = extract_config(small / "slide-0.tiff", "preview=false")
    left = bags_folder / ".slide-0.h5.123.0123abcd.tmp"
    old = bags_folder / ".gone.h5.123.0123abcd.tmp"
    young = bags_folder / ".other.h5.123.0123abcd.tmp"
    for path in (left, old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert extract(config) == 0
    assert [path.exists() for path in (left, old, young)] == [False, False, True]


@pytest.mark.parametrize(
    ("sent", "timeout", "expected"),
    [(signal.SIGSTOP, 20, "not finished after 20 s"), (signal.SIGSEGV, 900, "its process ended")],
)
def test_a_slide_that_hangs_or_crashes_is_a_row(small, extract_config, tmp_path, sent, timeout, expected):
    config = extract_config(small, "preview=false", f"slide_timeout={timeout}")
    sender = threading.Thread(target=send_once_at_work, args=(tmp_path / "bags", "slide-1", sent))
    sender.start()
    assert extract(config) == 1
    sender.join()
    rows = {row["slide_id"]: row for row in read_report(tmp_path / "bags")}
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done", "done"]
    assert expected in rows["slide-1"]["error"]
    assert sorted(bags(tmp_path / "bags")) == ["slide-0.h5", "slide-2.h5", "slide-3.h5"]
    assert all(check_bag(path) == [] for path in (tmp_path / "bags").glob("*.h5"))
    config.slide_timeout = None
    assert extract(config) == 0


def test_an_engine_that_cannot_be_reached(small, extract_config, monkeypatch):
    monkeypatch.setattr("zoomfeat.engines.cluster.ANSWER", "1s")
    with pytest.raises(ConfigurationError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        extract(extract_config(small, "engine=dask", "engine.address=tcp://127.0.0.1:9"))
    with pytest.raises(ConfigurationError, match="no engine 'slrm'"):
        extract_config(small, "engine=slrm")


@pytest.mark.parametrize("name", ["slurm", "pbs", "lsf", "sge"])
def test_the_script_of_a_job(name, tmp_path):
    config = JobsConfig(name, queue="gpu", account="lab", walltime="01:00:00", cores=2, memory="8GB", gpus=1)
    kind, options = job_options(config, tmp_path)
    script = kind.job_cls("tcp://127.0.0.1:8786", name="0", **options).job_script()
    assert "gpu" in script
    assert "lab" in script
    assert "--lifetime 3240s" in script
    assert "export OMP_NUM_THREADS=2" in script
    assert ("-W 01:00" in script) if name == "lsf" else ("01:00:00" in script)


@pytest.mark.parametrize(("text", "seconds"), [("04:00:00", 14_400), ("30:00", 1800), ("1-00:00:00", 86_400)])
def test_walltimes(text, seconds):
    assert seconds_of(text) == seconds
    with pytest.raises(ConfigurationError, match="expected HH:MM:SS"):
        seconds_of("four hours")
