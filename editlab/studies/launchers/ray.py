"""Ray: a cluster that is there already, or one of this machine's own processes (the extra `ray`).

Every worker must see the study's folder under the same path. Ray hands the task of a lost worker to another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import Field

from editlab.errors import ConfigError
from editlab.studies.launchers import Launch, Lost

T = TypeVar("T")
R = TypeVar("R")


class Config(Launch):
    """Where the cluster is."""

    address: str | None = Field(None, description="of the cluster ('auto' finds it); default one of this machine's own")


def launch(function: Callable[[T], R], tasks: Sequence[T], config: Config) -> Iterator[tuple[int, R | Lost]]:
    """Every task as a Ray task on `threads` cores.

    Raises:
        ConfigError: Ray is not installed, or the cluster is not reached.
    """
    ray, is_ours = _connected(config)
    try:
        remote = ray.remote(num_cpus=config.threads_each, max_retries=config.retries)(function)
        waiting = list(range(len(tasks)))
        under_way: dict[Any, int] = {}
        while waiting or under_way:
            while waiting and len(under_way) < config.workers:
                number = waiting.pop(0)
                under_way[remote.remote(tasks[number])] = number
            ended, _ = ray.wait(list(under_way), num_returns=1)
            number = under_way.pop(ended[0])
            try:
                yield number, ray.get(ended[0])
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                yield number, Lost(f"its worker was lost: {str(error).splitlines()[0]}")
    finally:
        if is_ours:
            ray.shutdown()


def _connected(config: Config) -> tuple[Any, bool]:
    """Ray, and whether the cluster was made here."""
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed.", "Run: pip install 'editlab[ray]'") from None
    if ray.is_initialized():
        return ray, False
    cores = None if config.address else config.workers * config.threads_each
    try:
        ray.init(address=config.address, num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises that very class when a node does not start in time
        raise ConfigError(f"No Ray cluster was reached: {error}", "Check 'launch.address'.") from None
    return ray, True
