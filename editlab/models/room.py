"""Whether a model fits where it is to be loaded, from the headers of its weights, before anything is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editlab.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}.", "Copy or download it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", "Copy or download it again.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights; none where the folder has none in safetensors.

    Raises:
        ModelError: the index of the files is no JSON object.
    """
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map", {})
        return [folder / name for name in sorted(set(named.values()))]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: by name dtype, shape and data_offsets, and "__metadata__".

    Raises:
        ModelError: the file is cut short or damaged.
    """
    size = path.stat().st_size
    damaged = ModelError(f"{path} is cut short or damaged ({size} bytes).", "Copy or download it again.")
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise damaged
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise damaged
        try:
            found: dict[str, Any] = json.loads(file.read(length))
            end = max((item["data_offsets"][1] for key, item in found.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
    if size != 8 + length + end:
        raise damaged
    return found


def bytes_of(folder: Path, dtype: str = "auto") -> int:
    """Bytes of a model's weights in `dtype`, or as they are saved."""

    def sizes() -> Iterator[int]:
        for path in weight_files(folder):
            for name, item in header(path).items():
                if name == "__metadata__":
                    continue
                start, end = item["data_offsets"]
                is_cast = dtype in _BYTES and item.get("dtype") in _FLOATS
                yield math.prod(item["shape"]) * _BYTES[dtype] if is_cast else end - start

    return sum(sizes())


def free_bytes(device: Any) -> int:
    """What can still be allocated on a torch device."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def check_room(name: str, folder: Path, needed: int, dtype: str, device: Any) -> None:
    """Refuse a model of `needed` bytes in `dtype` if less is free.

    Raises:
        ModelError: it does not fit.
    """
    free = free_bytes(device)
    if needed <= free:
        return
    fix = "--device-map auto, which keeps on disk what does not fit and is slower"
    half = bytes_of(folder, "bfloat16")
    if half <= free:
        fix = f"--dtype bfloat16 ({half / 1e9:.1f} GB) or {fix}"
    raise ModelError(
        f"{name} takes {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free on {device}.", f"Use {fix}."
    )
