"""The journal of a run: one line of JSON per thing that happened, each on the disk before the next thing begins.

A run that is killed leaves at most one torn line at the end, which the next line takes the place of. What
a line speaks of (a pack) is whole on the disk before the line is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from editlab.errors import ResumeRefused, RunBusy, WriteFailed
from editlab.state.files import cause_told, missing_folders, remove, remove_empty

NAME = "journal.jsonl"
LOCK = ".lock"


class Journal:
    """Events in order; `add` returns when the line is on the disk."""

    def __init__(self, folder: Path) -> None:
        """Open the journal of a run folder, or begin one.

        Raises:
            ResumeRefused: a line other than the last cannot be read.
        """
        self.path = folder / NAME
        self.events: list[dict[str, Any]] = []
        self._torn_at: int | None = None  # where a line begins that a kill cut off
        self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        raw = self.path.read_bytes()
        whole, torn = raw[: raw.rfind(b"\n") + 1], raw[raw.rfind(b"\n") + 1 :]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event["event"], str):
                    raise ValueError("no event")
            except (ValueError, KeyError, RecursionError):
                raise ResumeRefused(
                    f"Line {number} of {self.path} is damaged.", "Start a new run; this one cannot be gone on with."
                ) from None
            self.events.append(event)
        self._torn_at = len(whole) if torn else None

    def add(self, event: str, **data: Any) -> None:
        """Write an event down.

        Raises:
            WriteFailed: the system does not let it be written; the journal ends with the event before.
        """
        row = {"event": event, **data}
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        size = self.path.stat().st_size if self.path.exists() else None
        if self._torn_at is not None:
            # Here and not on reading: another process may be about to write the rest of that line.
            size = self._torn_at
            os.truncate(self.path, size)
            self._torn_at = None
        try:
            with cause_told(self.path), self.path.open("ab") as f:
                f.write(line.encode())
                f.flush()
                os.fsync(f.fileno())
        except BaseException:
            if size is None:
                remove(self.path)
            else:
                os.truncate(self.path, size)
            raise
        self.events.append(row)

    def of_chunk(self, chunk: int) -> dict[str, Any] | None:
        """The event that ended a chunk, or None if it has not ended."""
        ends = [e for e in self.events if e["event"] in ("committed", "failed") and e["chunk"] == chunk]
        return ends[-1] if ends else None

    def last(self, event: str) -> dict[str, Any] | None:
        """The latest event of a kind."""
        return next((e for e in reversed(self.events) if e["event"] == event), None)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run folder, made if missing, for this process; the lock goes with the process, however that ends.

    If no run lies in it afterwards the lock is gone too, and so is the folder if it was made here and is empty.

    Raises:
        RunBusy: another process holds it. WriteFailed: the system does not let it be made.
    """
    made = missing_folders(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with cause_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise RunBusy(f"Another process is writing '{folder}'.", "Wait for it, or stop it.") from None
    except WriteFailed:
        remove_empty(made)
        raise
    try:
        yield
    finally:
        if not (folder / NAME).exists():
            remove(folder / LOCK)
            remove_empty(made)
        lock.release()
