"""Files that are either whole or absent, and folders that are either filled or as they were."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from editlab.errors import ConfigError, EditlabError, WriteFailed, is_disk_full, system_cause
from editlab.models.cache import cache_root

ABANDONED = 3600.0  # seconds since the last byte of a temporary file, after which nobody is writing it
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def folder_for(folder: str | Path, name: str, what: str) -> Path:
    """A folder that holds nothing under this name yet.

    Args:
        what: stands there under that name, as in "a result".

    Raises:
        ConfigError: it holds one already.
    """
    path = Path(folder)
    if (path / name).exists():
        raise ConfigError(f"'{path}' holds {what} already.", "Choose another folder.")
    return path


@contextmanager
def filled_or_removed(folder: Path) -> Iterator[None]:
    """While open, `folder` is filled; whatever stops that midway, what was not there before is removed again.

    Raises:
        WriteFailed: a file cannot be written, with the system's reason.
    """
    made = missing_folders(folder)
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        with cause_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in before and path.name != ".lock":
                remove(path)
        remove_empty(made)
        raise


@contextmanager
def cause_told(path: Path) -> Iterator[None]:
    """What the system says while `path` is written becomes a sentence with the path in it.

    Raises:
        WriteFailed: it does not let it be written.
    """
    try:
        yield
    except EditlabError:
        raise
    except Exception as error:
        # The tokenizers library has no class of its own.
        if not isinstance(error, OSError | SafetensorError) and not is_disk_full(error):
            raise
        fix = "choose another folder"
        if cache_root() in path.absolute().parents:
            fix = "point EDITLAB_CACHE at a folder on another disk"
        raise WriteFailed(
            f"'{path}' could not be written: {system_cause(error)}.", f"Free some space, or {fix}."
        ) from error


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, as far as the system lets us."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_empty(folders: list[Path]) -> None:
    """Delete those of the folders, innermost first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """Those of a folder and its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under its final name in one step."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_whole(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in one step; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one step."""
    write_whole(path, lambda temporary: save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Raises:
        WriteFailed: the system does not let it be written; nothing is left of it, and an older file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    made = missing_folders(path.parent)
    try:
        with cause_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            temporary.open("xb").close()
            mode = temporary.stat().st_mode
            write(temporary)
            # safetensors makes files for the owner alone; these are as readable as any other.
            temporary.chmod(mode)
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
            temporary.replace(path)
    except BaseException:
        remove(temporary)
        remove_empty(made)
        raise


def _sweep(folder: Path) -> None:
    """Remove from a folder of the cache what processes left there that were killed while they wrote."""
    if cache_root() not in folder.absolute().parents:
        return
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process may have removed it
            if _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < time.time() - ABANDONED:
                remove(path)


def cached_json(kind: str, key: str, make: Callable[[], Any]) -> Any:
    """The JSON value kept under `kind` and `key` in the user cache, made at first use."""
    path = cache_root() / kind / f"{key}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = make()
        write_json(path, value)
        return value
