"""The header of a tensor file, checked before any tensor is read."""

from __future__ import annotations

import math
from io import BufferedReader
from typing import Any

from editlab.errors import PackError
from editlab.state.packs.manifest import (
    ITEM_BYTES,
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    TENSORS_NAME,
    Manifest,
    parse_json,
    shown,
)


def damaged(why: str) -> PackError:
    return PackError(f"{TENSORS_NAME} does not belong to this pack or is damaged: {why}.", "Get the pack again.")


def read_header(file: BufferedReader, size: int, most: int = MAX_JSON_BYTES) -> dict[str, tuple[str, list[int]]]:
    """Per tensor its dtype and shape, after checking that the data fills the file exactly.

    Args:
        size: of the file. most: bytes that the header may have.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(most, size - 8):
        raise damaged("its header is larger than the file or than the limit")
    header = parse_json(file.read(length), f"The header of {TENSORS_NAME}")
    if not isinstance(header, dict):
        raise damaged("its header is not an object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise damaged("its metadata is not text")
    spans, found = [], {}
    for name, item in header.items():
        if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
            raise damaged(f"the record of {shown(name)} is malformed")
        dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise damaged(f"{shown(name)} has an unknown dtype {shown(str(dtype))}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(shape) > 8 or len(offsets) != 2:
            raise damaged(f"the record of {shown(name)} is malformed")
        if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
            raise damaged(f"the shape of {shown(name)} does not match its bytes")
        spans.append((offsets[0], offsets[1]))
        found[name] = (dtype, shape)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise damaged("its tensors overlap or leave gaps")
        end = stop
    if end != size - 8 - length:
        raise damaged(f"its header declares {end} bytes of data, the file has {size - 8 - length}")
    return found


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def match(header: dict[str, tuple[str, list[int]]], manifest: Manifest) -> None:
    wanted = {t.tensor: (t.dtype, t.shape) for e in manifest.entries for t in e.tensor_records()}
    for name in wanted.keys() | header.keys():
        if name not in header:
            raise damaged(f"{MANIFEST_NAME} lists a tensor {shown(name)} that it lacks")
        if name not in wanted:
            raise damaged(f"it has a tensor {shown(name)} that {MANIFEST_NAME} does not list")
        if header[name] != wanted[name]:
            raise damaged(f"{shown(name)} is {header[name]}, {MANIFEST_NAME} says {wanted[name]}")
