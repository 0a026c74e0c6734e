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


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights; none where the folder has none in safetensors."""
    if (folder / INDEX).is_file():
        named = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map", {})
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


def check_room(name: str, needed: dict[str, int], dtype: str, device: Any) -> None:
    """Refuse a model that is larger than what is free.

    Args:
        needed: bytes of its weights by dtype; that of `dtype` is asked for, the others are offered.

    Raises:
        ModelError: it does not fit.
    """
    free = free_bytes(device)
    if needed[dtype] <= free:
        return
    smaller = [f"--dtype {other} ({size / 1e9:.1f} GB)" for other, size in needed.items() if size <= free]
    fix = " or ".join([*smaller[:1], "--device-map auto, which keeps on disk what does not fit and is slower"])
    raise ModelError(
        f"{name} takes {needed[dtype] / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free on {device}.",
        f"Use {fix}.",
    )
