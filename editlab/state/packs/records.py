"""Records of entries that are too many for `pack.json`: lines of JSON, kept as bytes in the tensor file.

One line has an entry without its requests, the lines after it a request each. The bytes are a tensor of their own, so
they are whole, hashed and replaced together with the numbers. A line is as bounded as `pack.json` is, the whole by
`MAX_RECORDS_BYTES`; what the lines say is checked as strictly as what `pack.json` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editlab.errors import ConfigError, PackError
from editlab.state.packs.manifest import MAX_ENTRIES, MAX_JSON_BYTES, Manifest, parse_json, validated

MAX_RECORDS_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 64 * 2**20  # of the tensor file of such a pack
ENTRY_BYTES = 8192  # of an entry's settings and diagnostics, about


def lines_of(records: Sequence[Mapping[str, Any]]) -> Tensor:
    """(n,) uint8: the records of entries.

    Raises:
        PackError: a line, or all of them, would be longer than what is read.
    """
    lines = []
    try:
        for record in records:
            lines.append(_line({"entry": {**record, "requests": []}}))
            lines += [_line({"request": request}) for request in record["requests"]]
    except (ValueError, RecursionError) as error:
        raise PackError(f"An entry cannot be saved as JSON: {error}.", "Check its texts.") from None
    total, longest = sum(map(len, lines)), max(map(len, lines), default=0)
    if total > MAX_RECORDS_BYTES or longest > MAX_JSON_BYTES:
        raise PackError(
            f"The records of the edits would have {total / 2**20:,.0f} MiB, one of them {longest / 2**20:,.0f}; "
            f"{MAX_RECORDS_BYTES // 2**20} and {MAX_JSON_BYTES // 2**20} are the most.",
            "Save fewer edits per pack.",
        )
    return torch.frombuffer(bytearray(b"".join(lines)), dtype=torch.uint8)


def with_records(manifest: Manifest, lines: bytes) -> Manifest:
    """The manifest with the entries that its records tell.

    Raises:
        PackError: a line is no record, or the entries do not fit the manifest.
    """
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(_split(lines), 1):
        what = f"Line {number} of the records of entries"
        value = parse_json(line, what) if len(line) <= MAX_JSON_BYTES else None
        kind, content = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", None)
        if kind == "entry" and isinstance(content, dict) and len(entries) < MAX_ENTRIES:
            entries.append({**content, "requests": []})
        elif kind == "request" and entries:
            entries[-1]["requests"].append(content)
        else:
            raise PackError(f"{what} is neither an entry nor a request of one.", "Get the pack again.")
    found = validated(manifest.model_dump(exclude={"records"}) | {"entries": entries})
    if found.n_active != manifest.n_active:
        raise PackError(
            f"{found.n_active} edits are active, pack.json says {manifest.n_active}.", "Get the pack again."
        )
    return found


def check_room(facts: Sequence[Mapping[str, Any]], entries: int) -> None:
    """Refuse more than a pack holds before anything of it is computed.

    Raises:
        ConfigError: too many edits, or facts that are too long in all.
    """
    if entries > MAX_ENTRIES:
        raise ConfigError(
            f"A run of {entries:,} edits cannot be saved: a pack holds {MAX_ENTRIES:,}.",
            "Write several facts with one edit (mode batch or sequential-batched), or use fewer facts.",
        )
    size = sum(len(_line(dict(fact))) for fact in facts) + ENTRY_BYTES * entries
    if size > MAX_RECORDS_BYTES:
        raise ConfigError(
            f"The facts take {size / 2**20:,.0f} MiB, and a pack holds {MAX_RECORDS_BYTES // 2**20} of them.",
            "Use fewer facts, or shorter texts.",
        )


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _split(lines: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(lines):
        stop = lines.find(b"\n", start)
        stop = len(lines) if stop < 0 else stop
        yield lines[start:stop]
        start = stop + 1
