"""Scripts of experiments: what they count of a run, and that a run of something else is not taken for it."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import editlab
from editlab import Fact
from editlab.runs import Plan
from editlab.runs.journal import Journal

FOLDER = Path(editlab.__file__).parents[1] / "experiments"
FACTS = [Fact(prompt="The capital of {} is", subject=name, target_new="Rome") for name in "ABCDE"]


def script(name: str) -> Any:
    """A script as a module, which is not among those that others import."""
    spec = spec_from_file_location(f"experiment_{name.replace('/', '_')}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_costs_of_edits_of_several_facts_are_of_all_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("planned", model="m")
    journal.add("committed", chunk=0, seconds=3.0)  # of each of two facts
    journal.add("failed", chunk=1, reason="")
    journal.add("committed", chunk=2, seconds=4.0)  # of one
    (tmp_path / "edits.safetensors").write_bytes(b"12345")
    plan = Plan(method="memit", mode="sequential-batched", batch_size=2)
    assert script("lifelong/run").costs_of(tmp_path, plan, FACTS) == {"failed": 2, "seconds": 2.0, "bytes": 1.0}


def test_a_sequence_of_other_facts_is_another_run(tmp_path: Path) -> None:
    lifelong = script("lifelong/run")
    places = [lifelong.folder_of(tmp_path, "rome", facts) for facts in (FACTS, FACTS[:3], FACTS[::-1], FACTS)]
    assert len(set(places)) == 3 and places[0] == places[3] and "-5-" in places[0].name


@pytest.mark.parametrize(
    ("relation", "subjects", "name"),
    [("capital", None, "m-probe.csv"), ("language", 40, "m-language-40-subjects-probe.csv")],
)
def test_tables_of_conflicts_have_what_is_unusual_in_their_name(relation: str, subjects: int | None, name: str) -> None:
    conflicts = script("conflicts/run")
    study = object.__new__(conflicts.Study)
    study.lm, study.relation, study.subjects = type("Named", (), {"name": "m"})(), relation, subjects
    assert study.path("probe").name == name
