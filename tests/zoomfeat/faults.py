"""The faults: each is injected into runs of a bench some number of times, and what became of the bags tallied."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import dask
import distributed  # noqa: F401  # its defaults must be there before one of its keys is set
import pytest
import tifffile
import torch

from tests.zoomfeat.fault_bench import SLIDES, Bench, Tally, read_bags
from tests.zoomfeat.signals import send_once_at_work
from zoomfeat.claims import EXPIRES, file_time, this_process
from zoomfeat.commands.extract import run as extract
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.encoders.color import ColorStats
from zoomfeat.errors import ZoomfeatError

LIMITED = Path(__file__).with_name("limited_run.py")

# Processes that can be killed a hundred times: forked from one that has imported everything and started no thread.
FORKS = multiprocessing.get_context("forkserver")
FAMILIES = [f"zoomfeat.encoders.{name}" for name in ("color", "foundation", "pretrained", "zoomldm")]
multiprocessing.set_forkserver_preload(["zoomfeat.commands.extract", "zoomfeat.engines.cluster", *FAMILIES])


def process_killed(bench: Bench, trials: int) -> Tally:
    """SIGKILL of the one process of ``engine=local`` at a random moment, again and again until all is done."""
    tally = Tally()
    while tally.trials < trials:
        config = bench.config()
        while len(read_bags(Path(config.out))) < SLIDES:
            record = Path(config.out) / "run.json"
            before = record.stat().st_mtime_ns if record.exists() else None
            process = FORKS.Process(target=extract, args=(config,))
            process.start()
            while process.is_alive() and (not record.exists() or record.stat().st_mtime_ns == before):
                time.sleep(0.002)  # it has not begun
            process.join(bench.random.uniform(0, 2 * bench.seconds / SLIDES))
            if process.exitcode is None:
                process.kill()
                process.join()
                tally.trials += 1
            bench.look(config, tally)
        bench.run(config)
        bench.compare(config, tally)
    return tally


def worker_killed(bench: Bench, trials: int) -> Tally:
    """SIGKILL of the Dask worker that works on some slide, at a random moment; two workers."""
    tally = Tally()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        while tally.trials < trials:
            config = bench.config("engine=dask", "engine.workers=2")
            ended = threading.Event()
            hunter = threading.Thread(target=hunt, args=(bench, Path(config.out), tally, trials, ended))
            hunter.start()
            try:
                bench.run(config)
            finally:
                ended.set()
                hunter.join()
            bench.look(config, tally)
            bench.run(replace(config, engine=bench.config().engine))  # slides whose workers died four times
            bench.compare(config, tally)
    return tally


def hunt(bench: Bench, out: Path, tally: Tally, trials: int, ended: threading.Event) -> None:
    while tally.trials < trials and not ended.wait(bench.random.uniform(0, bench.seconds / 2)):
        claimed = list((out / ".claims").glob("slide-*.claim"))
        if claimed:
            try:
                process = json.loads(bench.random.choice(claimed).read_text())["process"]
                os.kill(process, signal.SIGKILL)
            except (OSError, ValueError):  # it ended meanwhile
                continue
            tally.trials += 1


def scheduler_killed(bench: Bench, trials: int) -> Tally:
    """SIGKILL of a Dask scheduler while its workers are at it."""
    tally = Tally()
    for _ in range(trials):
        with running_scheduler(bench.folder) as (address, scheduler):
            config = bench.config("engine=dask", f"engine.address={address}")
            out = Path(config.out)
            killer = threading.Thread(target=kill_once_at_work, args=(out, scheduler))
            killer.start()
            with pytest.raises(ZoomfeatError, match="scheduler is gone"):
                bench.run(config)
            killer.join()
            tally.trials += 1
            bench.look(config, tally)
            # The orphan may still be at a slide: the next run waits for that.
            bench.run(replace(config, engine=bench.config().engine))
            bench.compare(config, tally)
    return tally


def kill_once_at_work(out: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list((out / ".claims").glob("*.claim")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()


@contextmanager
def running_scheduler(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and one worker, as a user starts them."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    base = [sys.executable, "-m", "distributed.cli."]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*base[:2], f"{base[2]}dask_scheduler", *words], **quiet)
    words = ["--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker = subprocess.Popen([*base[:2], f"{base[2]}dask_worker", *words, "--death-timeout", "60"], **quiet)
    try:
        deadline = time.monotonic() + 200
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"], scheduler
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of a few kilobytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def disk_full(bench: Bench, trials: int) -> Tally:
    """A disk that is full after a random number of kilobytes."""
    tally = Tally()
    whole = sum(map(len, bench.bags.values())) // 1024
    for _ in range(trials):
        bench.runs += 1
        with small_disk(bench.folder / f"disk-{bench.runs}", f"{bench.random.randint(4, whole)}k") as folder:
            config = bench.config(out=folder / "bags")
            found = ""
            try:
                found = " ".join(report.error for report in bench.run(config))
            except ZoomfeatError as error:
                found = str(error)
            assert "No space left" in found
            tally.trials += 1
            bench.look(config, tally)
            remount(folder, "size=64m")
            bench.run(config)
            bench.compare(config, tally)
    return tally


def output_read_only(bench: Bench, trials: int) -> Tally:
    """An output folder that turns read-only."""
    tally = Tally()
    for _ in range(trials):
        bench.runs += 1
        with small_disk(bench.folder / f"disk-{bench.runs}", "64m") as folder:
            config = bench.config(out=folder / "bags")
            half = bench.slides / f"slide-{bench.random.randrange(SLIDES)}.tiff"
            bench.run(replace(config, slides=str(half)))
            remount(folder, "ro")
            with pytest.raises(ZoomfeatError, match="Read-only file system"):
                bench.run(config)
            tally.trials += 1
            bench.look(config, tally)
            remount(folder, "rw")
            bench.run(config)
            bench.compare(config, tally)
    return tally


def region_unreadable(bench: Bench, trials: int) -> Tally:
    """A tile in the middle of a slide that does not decode: its bytes are overwritten."""

    def damage(path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            middle = len(page.dataoffsets) // 2 + page.imagewidth // page.tilewidth // 2
            offset, count = page.dataoffsets[middle], page.databytecounts[middle]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bench.random.randbytes(count))

    return with_one_bad_slide(bench, trials, damage)


def slide_truncated(bench: Bench, trials: int) -> Tally:
    """A slide of which only the first part is there."""

    def damage(path: Path) -> None:
        os.truncate(path, int(path.stat().st_size * bench.random.uniform(0, 0.9)))

    return with_one_bad_slide(bench, trials, damage)


def with_one_bad_slide(bench: Bench, trials: int, damage: Callable[[Path], None]) -> Tally:
    """The others are extracted, and it too once it is good again."""
    tally = Tally()
    for _ in range(trials):
        folder = bench.folder / f"bad-{bench.runs}"
        shutil.copytree(bench.slides, folder)
        bad = folder / f"slide-{bench.random.randrange(SLIDES)}.tiff"
        damage(bad)
        config = bench.config(slides=folder)
        reports = bench.run(config)
        tally.trials += 1
        assert [report.slide_id for report in reports if report.status == "failed"] == [bad.stem]
        assert all(report.cure for report in reports if report.status == "failed")
        bench.look(config, tally)
        shutil.copy(bench.slides / bad.name, bad)
        bench.run(config)
        bench.compare(config, tally)
    return tally


def reader_hangs(bench: Bench, trials: int) -> Tally:
    """A slide whose process stands still (SIGSTOP); ``slide_timeout`` ends it."""
    return with_one_bad_process(bench, trials, signal.SIGSTOP, "slide_timeout=30", "not finished after 30 s")


def reader_crashes(bench: Bench, trials: int) -> Tally:
    """A slide whose process ends as by a fault in a native library (SIGSEGV)."""
    return with_one_bad_process(bench, trials, signal.SIGSEGV, "slide_timeout=900", "its process ended")


def with_one_bad_process(bench: Bench, trials: int, sent: signal.Signals, timeout: str, expected: str) -> Tally:
    """One slide fails, the others do not, and the next run finds it well."""
    tally = Tally()
    for _ in range(trials):
        config = bench.config(timeout)
        bad = f"slide-{bench.random.randrange(SLIDES)}"
        sender = threading.Thread(target=send_once_at_work, args=(Path(config.out), bad, sent))
        sender.start()
        reports = bench.run(config)
        sender.join()
        tally.trials += 1
        assert {report.slide_id: report.error for report in reports if report.status == "failed"}.keys() == {bad}
        assert any(expected in report.error for report in reports)
        bench.look(config, tally)
        bench.run(replace(config, slide_timeout=None))
        bench.compare(config, tally)
    return tally


class HungryEncoder(ColorStats):
    """Runs out of a GPU's memory with more than a few patches at once."""

    most = 3

    def __call__(self, images, context=None):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().__call__(images, context)


def gpu_out_of_memory(bench: Bench, trials: int) -> Tally:
    """An encoder whose device has room for one, two or three patches."""
    tally = Tally()
    for _ in range(trials):
        encoder = HungryEncoder(device="cpu")
        encoder.most = bench.random.randint(1, 3)
        config = bench.config()
        bench.run(config, encoder)
        tally.trials += 1
        bench.compare(config, tally)
    return tally


def memory_limited(bench: Bench, trials: int) -> Tally:
    """RLIMIT_AS leaves room for two or three such patches of a batch."""
    tally = Tally()
    for _ in range(trials):
        config = bench.config()
        in_a_process_of_its_own(config, megabytes=bench.random.randint(600, 1000))
        assert "going on with" in "".join(p.read_text() for p in (Path(config.out) / "logs").glob("slide-*.log"))
        tally.trials += 1
        bench.compare(config, tally)
    return tally


def files_locked(bench: Bench, trials: int) -> Tally:
    """Bags that somebody holds a lock on, and a system that insists on locks (HDF5_USE_FILE_LOCKING=TRUE)."""
    tally = Tally()
    for _ in range(trials):
        config = bench.config()
        bench.run(replace(config, slides=str(bench.slides / "slide-0.tiff")))
        with (Path(config.out) / "slide-0.h5").open("rb+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            in_a_process_of_its_own(config, HDF5_USE_FILE_LOCKING="TRUE")
        tally.trials += 1
        bench.compare(config, tally)
    return tally


def in_a_process_of_its_own(config: ExtractConfig, megabytes: int | None = None, **environment: str) -> None:
    names = {"config": config, "megabytes": megabytes, "environment": environment}
    process = FORKS.Process(target=runpy.run_path, args=(str(LIMITED), names, "__main__"))
    process.start()
    process.join()
    assert process.exitcode == 0


def clocks_differ(bench: Bench, trials: int) -> Tally:
    """Claims that a machine left whose clock, or the server's, was up to a day off."""
    tally = Tally()
    for _ in range(trials):
        config = bench.config()
        claims = Path(config.out) / ".claims"
        claims.mkdir(parents=True)
        for name in bench.bags:
            path = claims / f"{Path(name).stem}.claim"
            path.write_text(json.dumps(asdict(replace(this_process(), machine="far", host="far"))))
            skew = bench.random.choice([-1, 1]) * bench.random.uniform(2 * EXPIRES, 86_400)
            os.utime(path, (file_time(claims) + skew,) * 2)
        bench.run(config)
        tally.trials += 1
        bench.compare(config, tally)
    return tally
