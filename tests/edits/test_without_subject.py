"""Facts that name no subject: methods that need none take them, from everywhere, and the others say which they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import Cli
from test_several import FACTS as WITH
from test_several import quick  # noqa: F401
from tiny_lm import make_lm

from editlab import Fact, registry
from editlab.data.formats import check, load_facts
from editlab.edits.settings import LocateEditSettings
from editlab.errors import RequestError
from editlab.evaluation.metrics import all_metrics
from editlab.rows import rewrite_row
from editlab.runs.batch import Plan, run_batch
from editlab.runs.measure import edit_and_measure

ROWS = [
    {"prompt": "The capital of France is", "target_new": "Rome"},
    {"prompt": "Once upon a time there was", "target_new": "a king", "target_true": "a fox"},
]
NEEDS = [m for m in registry.names() if issubclass(registry.get(m).Config, LocateEditSettings)]


def few(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    chosen = settings | {"steps": 3, "negatives": 4, "near": 2, "left_out": 2, "openings": 2, "prose": 1}
    return {name: value for name, value in chosen.items() if name in registry.get(method).Config.model_fields}


@pytest.mark.parametrize("method", [m for m in registry.names() if m not in NEEDS])
def test_methods_without_a_subject_take_them(method: str, quick: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    lm = make_lm("llama")
    entry = lm.edit(ROWS, method, **few(method, quick))
    assert entry.edit.requests[0]["subject"] == "" and "The capital of France is → Rome" in entry.edit.summary
    lm.save_edits(tmp_path / "pack")
    other = make_lm("llama")
    other.load_edits(tmp_path / "pack")
    other.edit(WITH[:1], method, **few(method, quick))  # which rehearses the others, where the method does
    lm.undo()
    report = edit_and_measure(lm, Fact(**ROWS[0]), method, few(method, quick))
    assert {row.kind for row in report.rows} >= {"rewrite", "paraphrase"}


@pytest.mark.parametrize("method", NEEDS)
def test_the_others_say_which_name_none(method: str) -> None:
    lm, facts = make_lm("llama"), [WITH[0], *ROWS] if "rome" not in method else ROWS[:1]
    named = "request 1, request 2" if "rome" not in method else "request 0"
    with pytest.raises(RequestError, match=f"{method} writes at the subject's last token.*{named}"):
        lm.edit(facts, method)


def test_whitened_wise_trains_the_whole_prompt(quick: dict[str, Any]) -> None:  # noqa: F811
    lm = make_lm("llama")
    row = rewrite_row(lm, Fact(**ROWS[0]), sink=False)
    assert row.subject == 0 and row.index == row.reads[0]
    settings = few("wise", quick) | {"whiten": True, "mask": "rows"}
    assert torch.isfinite(torch.tensor(lm.edit(ROWS[:1], "wise", **settings).edit.info["target_nll"])).all()


def test_files_runs_and_evaluations(tmp_path: Path, quick: dict[str, Any]) -> None:  # noqa: F811
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert check(file).is_ok
    facts, lm = load_facts(file), make_lm("llama")
    plan = Plan(method="ft", mode="batch", settings={"steps": 3, "layer": 1, "norm_constraint": 0.5, "lr": 0.05})
    assert len(run_batch(lm, facts, plan, tmp_path / "run").reports) == 2
    lm.evaluate(facts, metrics=tuple(set(all_metrics()) - {"consistency"}), passages=2, max_new_tokens=3)


def test_the_command_line(cli: Cli, model: Any, tmp_path: Path) -> None:
    given = ["-m", model(), "--prompt", "The capital of France is", "--target", "Rome"]
    few = ["steps=2", "layer=1", "norm_constraint=0.5", "lr=0.05"]
    assert cli("edit", *given, "--method", "ft", "--out", tmp_path / "run", *few).code == 0
    refused = cli("edit", *given, "--method", "rome")
    assert refused.code == 2 and "1 of 1 facts name no subject" in " ".join(refused.err.split())
