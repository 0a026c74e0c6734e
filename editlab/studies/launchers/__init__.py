"""Where tasks are carried out: one file per place, found by its name.

A launcher is a module with a `Config` (an `editlab.studies.launchers.Launch`) and

    launch(function, tasks, config) -> Iterator[tuple[int, Result | Lost]]

which calls `function(task)` for every task, somewhere, and yields the task's number with what came back, as they end.
Functions and tasks are pickled. A task whose worker was lost is given to another one, `retries` times; after that it
comes back as `Lost`. An error that the function raises is the caller's, so functions return what went wrong.
Closing the iterator early gives up what has not begun.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from editlab import registry
from editlab.config import MethodConfig, build


class Launch(MethodConfig):
    """What every launcher can be told."""

    workers: int = Field(1, ge=1, description="runs at once, at most")
    threads: int | None = Field(None, ge=1, description="threads of each; default the machine's cores over workers")
    retries: int = Field(2, ge=0, description="times a run is given to another worker when its own is lost")

    @property
    def threads_each(self) -> int:
        """Threads of a worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True)
class Lost:
    """A task whose workers were lost."""

    reason: str


def launch_settings(name: str, values: Mapping[str, Any]) -> Launch:
    """The settings of a launcher.

    Raises:
        UnknownName: there is no such launcher. ConfigError: a setting is wrong.
    """
    found: Launch = build(registry.get(name, "launchers").Config, values, f"launcher '{name}'")
    return found
