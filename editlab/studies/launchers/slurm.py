"""Slurm through submitit: every task a job (the extra `slurm`).

The process that launched waits for the jobs. If it is killed, jobs that run go on; a resumed study waits for their
folders rather than doing them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from editlab.errors import ConfigError
from editlab.studies.launchers import Launch, Lost

T = TypeVar("T")
R = TypeVar("R")
LOOK_EVERY = 1.0  # seconds


class Config(Launch):
    """How jobs are asked for."""

    cluster: Literal["slurm", "local"] = Field("slurm", description="'local' runs jobs as processes here, to try it")
    logs: Path = Field(Path("slurm"), description="folder of scripts and logs, seen by every node")
    timeout_min: int = Field(240, ge=1, description="minutes that a job may take")
    mem_gb: float | None = Field(None, gt=0, description="memory of a job; default Slurm's own")
    partition: str | None = Field(None, description="Slurm's partition")
    more: dict[str, Any] = Field(default={}, description="further parameters of submitit, such as slurm_gres")


def launch(function: Callable[[T], R], tasks: Sequence[T], config: Config) -> Iterator[tuple[int, R | Lost]]:
    """Every task as a job, `workers` at once; a job that vanished is submitted again.

    Raises:
        ConfigError: submitit is not installed, or Slurm is not here.
    """
    submitit, executor = _submitit(config)
    waiting = [(number, 0) for number in range(len(tasks))]
    jobs: dict[Any, tuple[int, int]] = {}
    try:
        while waiting or jobs:
            while waiting and len(jobs) < config.workers:
                number, losses = waiting.pop(0)
                jobs[executor.submit(function, tasks[number])] = (number, losses)
            ended = [job for job in jobs if job.done()]
            if not ended:
                time.sleep(LOOK_EVERY if config.cluster == "slurm" else 0.1)
            for job in ended:
                number, losses = jobs.pop(job)
                lost = job.exception()
                if lost is None:
                    yield number, job.result()
                elif isinstance(lost, submitit.core.utils.FailedJobError):  # the function raised it
                    raise lost
                elif losses < config.retries:
                    waiting.append((number, losses + 1))
                else:
                    yield number, Lost(f"its job was lost {losses + 1} times: {str(lost).splitlines()[0]}")
    finally:
        for job in jobs:
            job.cancel(check=False)


def _submitit(config: Config) -> tuple[Any, Any]:
    """The library, and what submits."""
    try:
        import submitit
    except ImportError:
        raise ConfigError("submitit is not installed.", "Run: pip install 'editlab[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(config.logs, cluster=config.cluster)
    except RuntimeError as error:
        raise ConfigError(f"Slurm is not here: {error}", "Launch from a node that has 'srun'.") from None
    given: dict[str, Any] = {
        "timeout_min": config.timeout_min,
        "cpus_per_task": config.threads_each,
        "mem_gb": config.mem_gb,
    }
    given |= {"slurm_partition": config.partition, **config.more}
    try:
        executor.update_parameters(**{name: value for name, value in given.items() if value is not None})
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"submitit refuses a setting of 'launch': {error}") from None
    return submitit, executor
