"""Tasks for launchers: they say where they ran, and some take their worker with them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Flaky:
    """A task that kills its worker until so many marks are in the folder."""

    number: int
    folder: Path
    deaths: int = 0


def double(task: Flaky) -> tuple[int, int, str]:
    """Twice the number, the process and its threads."""
    mark = task.folder / f"{task.number}"
    died = len(mark.read_text()) if mark.exists() else 0
    if died < task.deaths:
        mark.write_text("x" * (died + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * task.number, os.getpid(), os.environ.get("OMP_NUM_THREADS", "")


def broken(task: Flaky) -> int:
    """Raises."""
    raise ArithmeticError(f"task {task.number}")
