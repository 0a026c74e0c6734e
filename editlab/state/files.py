"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from editlab.errors import ConfigError
from editlab.models.cache import cache_root


def folder_for(folder: str | Path, name: str, what: str) -> Path:
    """A folder that holds nothing under this name yet, made if missing.

    Args:
        what: stands there under that name, as in "a result".

    Raises:
        ConfigError: it holds one already.
    """
    path = Path(folder)
    if (path / name).exists():
        raise ConfigError(f"'{path}' holds {what} already.", "Choose another folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path


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
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.open("xb").close()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors makes files for the owner alone; these are as readable as any other.
        temporary.chmod(mode)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cached_json(kind: str, key: str, make: Callable[[], Any]) -> Any:
    """The JSON value kept under `kind` and `key` in the user cache, made at first use."""
    path = cache_root() / kind / f"{key}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = make()
        write_json(path, value)
        return value
