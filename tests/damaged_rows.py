"""Damaged files of records, in all layouts and kinds of file. All seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damage import BYTE_DAMAGE, change_field
from invented_rows import MAKERS, WRITERS


def _drop_field(rng: random.Random, rows: list[Any]) -> None:
    row = rng.choice(rows)
    del row[rng.choice(list(row))]


def lose_subject(rng: random.Random, rows: list[Any]) -> None:
    row = rng.choice(rows)
    row = row.get("requested_rewrite", row)
    for name in ("subject", "concept"):
        if name in row:
            row[name] = rng.choice([None, "", "Nowhere at all", 3])


def _repeat(rng: random.Random, rows: list[Any]) -> None:
    rows.append(rng.choice(rows))


def _mix(rng: random.Random, rows: list[Any]) -> None:
    rows.insert(rng.randrange(len(rows) + 1), MAKERS[rng.choice(list(MAKERS))](50))


def _no_row(rng: random.Random, rows: list[Any]) -> None:
    rows[rng.randrange(len(rows))] = rng.choice([None, 1, "a", [], [1], {}, {"a": 1}])


def _leave(rng: random.Random, rows: list[Any]) -> None:
    pass


def _keep(rng: random.Random, data: bytes) -> bytes:
    return data


ROW_DAMAGE: list[Callable[[random.Random, list[Any]], None]] = [
    change_field, change_field, change_field, _drop_field, lose_subject, _repeat, _mix, _no_row, _leave,
]  # fmt: skip


def damaged_file(rng: random.Random, folder: Path) -> tuple[Path, str]:
    """A damaged file, and the damage in words."""
    name = rng.choice(list(MAKERS))
    kind = rng.choice(list(WRITERS))
    rows: list[Any] = json.loads(json.dumps([MAKERS[name](i) for i in range(3)]))
    in_rows = rng.choice(ROW_DAMAGE)
    in_bytes = rng.choice(BYTE_DAMAGE) if in_rows is _leave or rng.random() < 0.2 else _keep
    in_rows(rng, rows)
    path = folder / f"data.{rng.choice(['json', 'jsonl', 'csv', 'tsv', 'parquet', 'txt', 'bin'])}"
    try:
        WRITERS[kind](path, rows)
    except Exception:
        # This kind of file cannot hold such rows at all.
        kind = "ascii"
        path.write_text(json.dumps(rows), encoding="ascii")
    path.write_bytes(in_bytes(rng, path.read_bytes()))
    return path, f"{name} as {kind}: {in_rows.__name__}, {in_bytes.__name__}"
