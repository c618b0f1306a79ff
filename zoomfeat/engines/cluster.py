"""Workers of Dask: of a scheduler that runs, on this machine, or as jobs of a cluster's queue."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import dask
import dask_jobqueue
from distributed import Client, KilledWorker, LocalCluster, as_completed

from zoomfeat.conf.schema import DaskConfig, JobsConfig
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder

Item = TypeVar("Item")
Result = TypeVar("Result")

ANSWER = "30s"
"""How long a scheduler may take to answer at first."""

_JOBS = {
    "slurm": dask_jobqueue.SLURMCluster,
    "pbs": dask_jobqueue.PBSCluster,
    "lsf": dask_jobqueue.LSFCluster,
    "sge": dask_jobqueue.SGECluster,
}
_GPUS = {"slurm": "--gres=gpu:{}", "pbs": "-l ngpus={}", "lsf": "-gpu num={}", "sge": "-l gpu={}"}

# Of a scheduler that is started here. One slide at a time is given to a worker, so that the others are not suspected
# when it dies. A slide may take an hour: as many workers are asked for as there are slides.
_SCHEDULER = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.unknown-task-duration": "1h",
    "distributed.worker.daemon": False,  # slide_timeout= starts a process of the worker's own
}


class DaskEngine:
    """Tasks on the workers of a scheduler; those of a worker that dies go to another one.

    Args:
        client: of the scheduler.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """See :meth:`zoomfeat.engines.Engine.map`.

        Raises:
            ZoomfeatError: the scheduler is gone.
        """
        waiting = {self._client.submit(task, item, pure=False): item for item in items}
        for future in as_completed(list(waiting)):
            item = waiting.pop(future)
            try:
                yield item, future.result()
            except KilledWorker as error:
                yield item, _died(error)
            except CancelledError as error:  # also what futures become when the scheduler is gone
                raise ZoomfeatError(
                    f"the Dask scheduler is gone, with {len(waiting) + 1} tasks left",
                    cure="The same command again goes on from there",
                ) from error
            except Exception as error:
                yield item, error
            future.release()


def _died(error: KilledWorker) -> ZoomfeatError:
    return ZoomfeatError(
        f"its worker died, {error.allowed_failures + 1} times",
        cure="Often too little memory: see the last lines of its log in logs/, and the output of the job",
    )


@contextmanager
def open_cluster(config: DaskConfig | JobsConfig, out: Path) -> Iterator[DaskEngine]:
    """Workers as configured; those that were started here end with the block.

    Raises:
        ConfigurationError: no scheduler answers, or none can be started.
    """
    with dask.config.set(_SCHEDULER):
        if isinstance(config, DaskConfig) and config.address:
            with _client(config.address) as client:
                yield DaskEngine(client)
        elif isinstance(config, DaskConfig):
            with _local_cluster(config) as cluster, Client(cluster) as client:
                yield DaskEngine(client)
        else:
            with _jobs(config, out) as cluster, Client(cluster) as client:
                cluster.adapt(minimum=0, maximum=config.jobs)
                yield DaskEngine(client)


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=ANSWER)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {address} ({error})", cure="Start one with `dask scheduler`, and workers"
        ) from error
    with client:
        yield client


def _local_cluster(config: DaskConfig) -> LocalCluster:
    if config.workers < 1:
        raise ConfigurationError(f"engine.workers={config.workers}; expected at least 1", cure="The default is 2")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // config.workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names}):
        return LocalCluster(
            n_workers=config.workers,
            threads_per_worker=1,  # one slide at a time
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )


def _jobs(config: JobsConfig, out: Path) -> Any:
    """A cluster without workers; each will be one job."""
    kind, options = job_options(config, make_folder(Path(config.job_folder or out / "logs" / "jobs")).resolve())
    scheduler: dict[str, Any] = {"dashboard": False, "dashboard_address": ":0"}
    if config.interface:
        scheduler["interface"] = config.interface
    try:
        return kind(scheduler_options=scheduler, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"engine={config.name} cannot be started ({error})", cure="See docs/clusters.md"
        ) from error


def job_options(config: JobsConfig, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Which class of dask-jobqueue submits the jobs of an engine, and with what.

    A worker ends by itself before the time of its job is up, and its slide goes to another one.

    Args:
        config: of the engine.
        folder: where the output of jobs goes.

    Raises:
        ConfigurationError: no walltime.
    """
    lifetime = 0.9 * seconds_of(config.walltime)
    directives = list(config.directives)
    if config.gpus:
        directives.append(_GPUS[config.name].format(config.gpus))
    return _JOBS[config.name], {
        "queue": config.queue,
        "project" if config.name in ("lsf", "sge") else "account": config.account,
        "cores": config.cores,
        "memory": config.memory,
        "walltime": _of_queue(config),
        "processes": 1,
        "nanny": False,  # a job ends with its worker, and another takes its place
        "job_name": "zoomfeat",
        "job_extra_directives": directives,
        "job_script_prologue": [
            *config.prologue,
            f"export OMP_NUM_THREADS={config.cores} OMP_WAIT_POLICY=PASSIVE",
        ],
        "worker_extra_args": [
            *("--nthreads", "1"),  # one slide at a time
            *("--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{lifetime / 20:.0f}s"),
        ],
        "log_directory": str(folder),
    } | ({"interface": config.interface} if config.interface else {})


def _of_queue(config: JobsConfig) -> str:
    """The walltime as a queue wants it: LSF takes hours and minutes."""
    minutes = seconds_of(config.walltime) // 60
    return f"{minutes // 60:02d}:{minutes % 60:02d}" if config.name == "lsf" else config.walltime


def seconds_of(walltime: str) -> int:
    """``HH:MM:SS``, ``MM:SS`` or ``D-HH:MM:SS`` in seconds.

    Raises:
        ConfigurationError: something else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", walltime)
    if match is None:
        raise ConfigurationError(f"engine.walltime={walltime!r}; expected HH:MM:SS", cure="For example 04:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds
