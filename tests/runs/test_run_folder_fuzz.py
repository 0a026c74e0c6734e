"""Damaged run folders: read, refused in a sentence, or called unreadable; gone on with to the same weights or not."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import ROWS
from damage import BYTE_DAMAGE, TREE_DAMAGE
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.errors import EditlabError
from editlab.evaluation.results import Evaluation
from editlab.runs import Plan, is_finished, read_run, run_batch
from editlab.runs.records import list_runs, read_record, recorded_mode

PLAN = Plan(method="ft", mode="sequential", settings={"layer": 1, "lr": 0.05, "norm_constraint": 0.1, "steps": 2})


class Cut(BaseException):
    """Ends a run from inside."""


@pytest.fixture(scope="module")
def base() -> LM:
    return make_lm("llama")


@pytest.fixture(scope="module")
def runs(base: LM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that is complete and scored, and the same one cut off before its last edit."""
    root = tmp_path_factory.mktemp("runs")
    facts = [Fact(**row) for row in ROWS]
    lm = base.fork()
    run_batch(lm, facts, PLAN, root / "whole")
    lm.evaluate(facts[:2], metrics=("efficacy_argmax", "rewrite_acc")).save(root / "whole")
    edit, done = LM.edit, []

    def editing(self: LM, *args: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise Cut
        done.append(1)
        return edit(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(LM, "edit", editing)
        run_batch(base.fork(), facts, PLAN, root / "cut")
    return {"whole": root / "whole", "cut": root / "cut", "state": Path(lm.state_hash)}


def damage(rng: random.Random, path: Path) -> str:
    """Damage one file in place: its bytes, one of its values, or the order of its lines."""
    data = path.read_bytes()
    kind = rng.choice(["bytes", "value", "value", "value", "lines"])
    if kind == "bytes" or path.suffix not in (".json", ".jsonl"):
        how = rng.choice(BYTE_DAMAGE)
        path.write_bytes(how(rng, data))
        return f"{path.name}: {how.__name__}"
    rows = [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else [json.loads(data)]
    if kind == "lines" and len(rows) > 1:
        i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
        rng.choice([lambda: rows.insert(i, rows[j]), lambda: rows.pop(i), lambda: rows.insert(i, rows.pop(j))])()
    else:
        how_value = rng.choice(TREE_DAMAGE)
        how_value(rng, rows)
        kind = how_value.__name__
    texts = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return f"{path.name}: {kind}"


def read_all(folder: Path) -> None:
    """Everything that looks at a run folder."""
    record = read_record(folder)
    assert record.state in ("complete", "stopped", "interrupted", "unreadable")
    assert isinstance(record.name + record.kind + record.headline, str)
    assert isinstance(record.model, str | None) and isinstance(record.written, str | None)
    assert isinstance(record.edits, int | None) and isinstance(record.fired, int | None)
    assert all(found.name == folder.name for found in list_runs(folder.parent))
    assert recorded_mode(folder) in ("single", "together")
    for read in (is_finished, read_run, Evaluation.load):
        try:
            found = read(folder)
        except EditlabError as error:
            assert error.what
        else:
            if isinstance(found, Evaluation):
                found.table()
                found.to_json()


@pytest.mark.parametrize(("seed", "variants"), [(0, 300), pytest.param(1, 3000, marks=pytest.mark.model)])
def test_damaged_run_folders(seed: int, variants: int, runs: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(seed)
    for i in range(variants):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs[rng.choice(["whole", "cut"])], folder)
        names = [
            p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".jsonl", ".parquet") and p.name != "pack.json"
        ]
        path = rng.choice(names)
        told = f"variant {i}, {damage(rng, path)}"
        try:
            read_all(folder)
        except Exception as error:
            raise AssertionError(told) from error


@pytest.mark.parametrize(("seed", "variants"), [(0, 12), pytest.param(1, 200, marks=pytest.mark.model)])
def test_damaged_runs_are_gone_on_with_to_the_same_weights_or_not_at_all(
    seed: int, variants: int, base: LM, runs: dict[str, Path], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    for i in range(variants):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs["cut"], folder)
        packs = [p for p in sorted((folder / "edits").rglob("*")) if p.is_file()]
        told = f"variant {i}, {damage(rng, rng.choice([folder / 'journal.jsonl', folder / 'journal.jsonl', *packs]))}"
        lm = base.fork()
        try:
            plan, _, facts = read_run(folder)
            run_batch(lm, facts, plan, folder)
        except EditlabError as error:
            assert error.what, told
        except Exception as error:
            raise AssertionError(told) from error
        else:
            assert Path(lm.state_hash) == runs["state"], told
