"""A disk that is full from the k-th write on, whichever way a file is made."""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

FULL = os.strerror(errno.ENOSPC)


class Disk:
    """Counts writes; from the `room`-th on, half of what is written arrives, and then there is no space left."""

    def __init__(self, room: int | None) -> None:
        self.room, self.writes = room, 0

    def is_full(self) -> bool:
        self.writes += 1
        return self.room is not None and self.writes > self.room


class _File:
    """A file that was opened for writing."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file

    def write(self, data: Any) -> Any:
        if self._disk.is_full():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, FULL)
        return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def disk_with(room: int | None) -> Iterator[Disk]:
    """While open, that many writes succeed; None: all."""
    disk = Disk(room)
    opened, serialised, connected = io.open, safetensors.torch.serialize_file, sqlite3.connect

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        found = opened(file, mode, *args, **options)
        return _File(disk, found) if set(mode) & set("wax+") and not isinstance(file, int) else found

    def serialising(tensors: Any, filename: Any, *args: Any, **options: Any) -> None:
        serialised(tensors, filename, *args, **options)
        if disk.is_full():
            os.truncate(filename, Path(filename).stat().st_size // 2)
            raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})")

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> Any:
            if not statement.startswith("SELECT") and disk.is_full():
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *args)

        def executemany(self, *args: Any) -> Any:
            if disk.is_full():
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(*args)

    def connecting(path: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        return connected(path, *args, factory=Connection, **options)

    def on_the_way(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if disk.is_full():
                raise OSError(errno.ENOSPC, FULL)
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        patch.setattr(safetensors.torch, "serialize_file", serialising)
        patch.setattr(sqlite3, "connect", connecting)
        for name in ("mkdir", "fsync", "replace"):
            patch.setattr(os, name, on_the_way(getattr(os, name)))
        yield disk


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file and folder under `root`, hidden ones too, with contents."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}
