"""Damaged files in all layouts and kinds of file: records or a short report, never anything else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from damaged_rows import damaged_file, lose_subject
from invented_rows import HOLD_FACTS, MAKERS, WRITERS

from editlab.data.formats import Problem, check, iter_records, load_facts, load_records
from editlab.errors import EditlabError


@pytest.mark.parametrize(("seed", "variants"), [(0, 400), pytest.param(1, 10_000, marks=pytest.mark.model)])
def test_damaged_files(seed: int, variants: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    loaded = refused = 0
    for i in range(variants):
        folder = tmp_path / str(i)
        folder.mkdir()
        path, damage = damaged_file(rng, folder)
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
        lose_subject(rng, damaged)
        path = WRITERS["json"](tmp_path / f"{i}.json", rows)
        facts = load_facts(path, skip_malformed=True)
        assert len(facts) == (3 if name == "rows" and damaged[0]["subject"] == "Nowhere at all" else 2) or (
            name == "counterfact" and damaged[0]["requested_rewrite"]["subject"] == "Nowhere at all"
        )
