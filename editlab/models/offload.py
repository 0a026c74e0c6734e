"""Where weights lie that a model keeps on disk: gone with the model, and with the next one if a process was killed.

A lock in the folder goes with its process, however that ends, so that the next one knows what is abandoned.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

_PREFIX = "editlab-offload-"
UNLOCKED = 60.0  # seconds that a new folder may be without a lock


def folder_of_offloaded() -> tuple[Path, Callable[[], None]]:
    """A new folder, and what removes it; those of processes that were killed are removed now."""
    drop_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / ".lock")
    lock.acquire()

    def drop() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()

    return folder, drop


def drop_abandoned() -> None:
    """Remove the folders that no process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # of another user, in use, or gone by now
            if _is_being_made(folder):
                continue
            with FileLock(folder / ".lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def _is_being_made(folder: Path) -> bool:
    """Whether another process may be about to take this folder's lock."""
    return not (folder / ".lock").exists() and time.time() - folder.stat().st_mtime < UNLOCKED
