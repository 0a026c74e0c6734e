"""Damaged files in all layouts and kinds of file: records or a short report, never anything else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import BYTE_DAMAGE, change_field
from invented_rows import HOLD_FACTS, MAKERS, WRITERS

from editlab.data.formats import Problem, check, iter_records, load_facts, load_records
from editlab.errors import EditlabError


def _drop_field(rng: random.Random, rows: list[Any]) -> None:
    row = rng.choice(rows)
    del row[rng.choice(list(row))]


def _lose_subject(rng: random.Random, rows: list[Any]) -> None:
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
    change_field, change_field, change_field, _drop_field, _lose_subject, _repeat, _mix, _no_row, _leave,
]  # fmt: skip


def _variant(rng: random.Random, folder: Path) -> tuple[Path, str]:
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


@pytest.mark.parametrize(("seed", "variants"), [(0, 400), pytest.param(1, 10_000, marks=pytest.mark.model)])
def test_damaged_files(seed: int, variants: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    loaded = refused = 0
    for i in range(variants):
        folder = tmp_path / str(i)
        folder.mkdir()
        path, damage = _variant(rng, folder)
        told = f"variant {i}, {damage}"
        report = check(path)
        text = report.text()
        assert len(text.splitlines()) < 20, told
        assert len(text) < 8000, told
        text.encode()
        assert text.isprintable() or "\n" in text, told
        if report.is_ok:
            loaded += 1
            if not report.holds.startswith("passages"):
                records = load_records(path).records
                assert len(records) == report.records > 0, told
                again = [type(r).model_validate_json(r.model_dump_json()) for r in records]
                assert tuple(again) == records, told
            continue
        refused += 1
        assert path.name in text, told
        for problem in report.problems:
            assert problem.what, told
            assert problem.row or "cannot be used" in text or report.rows, told
        for read in (load_facts, load_records):
            with pytest.raises(EditlabError):
                read(path)
        whole = [item for item in iter_records(path) if isinstance(item, Problem)]
        assert len(whole) == len(report.problems), told
    assert loaded + refused == variants
    assert refused > 0.65 * variants  # measured: 0.78


@pytest.mark.parametrize("name", HOLD_FACTS)
def test_the_damage_to_one_row_leaves_the_others(name: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    for i in range(30):
        rows = json.loads(json.dumps([MAKERS[name](n) for n in range(3)]))
        damaged = [rows[1]]
        _lose_subject(rng, damaged)
        path = WRITERS["json"](tmp_path / f"{i}.json", rows)
        facts = load_facts(path, skip_malformed=True)
        assert len(facts) == (3 if name == "rows" and damaged[0]["subject"] == "Nowhere at all" else 2) or (
            name == "counterfact" and damaged[0]["requested_rewrite"]["subject"] == "Nowhere at all"
        )
