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
    study.results = Path("results")
    assert study.path("probe").name == name


WRITE_RESULTS = {
    "bench/run", "conflicts/report", "conflicts/run", "factworlds/train", "lifelong/run", "lifelong/sweep",
    "memory/report", "methods/run", "methods/sweep",
}  # fmt: skip


def test_every_script_that_writes_results_of_the_repository_has_the_option() -> None:
    scripts = {str(p.relative_to(FOLDER).with_suffix("")): p.read_text(encoding="utf-8") for p in FOLDER.glob("*/*.py")}
    assert {name for name, text in scripts.items() if "update_results" in text} == WRITE_RESULTS


def test_a_report_leaves_the_results_of_the_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (FOLDER / "memory" / "results.md").read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--root", str(tmp_path / "no-runs")])
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])
    try:
        script("memory/report").main()
    finally:
        sys.modules.pop("shared", None)
    assert (FOLDER / "memory" / "results.md").read_bytes() == before
    assert (tmp_path / "runs" / "experiments" / "memory" / "results.md").is_file()


def test_results_go_to_runs_unless_those_of_the_repository_are_to_be_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = script("shared")
    own = str(FOLDER / "lifelong" / "run.py")
    assert shared.results_folder(own, False).resolve() == tmp_path / "runs" / "experiments" / "lifelong"
    assert shared.results_folder(own, True) == FOLDER / "lifelong"


@pytest.mark.parametrize("name", ["bench/run", "lifelong/run", "lifelong/sweep", "methods/run", "rome_counterfact/run"])
def test_a_facts_file_that_is_not_there_is_said_before_anything_is_begun(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("begun before the file was looked at")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", begun)
    monkeypatch.setattr(editlab.LM, "from_pretrained", begun)
    monkeypatch.setattr(sys, "argv", [name, "nowhere.json"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER / Path(name).parent), str(FOLDER)])
    try:
        with pytest.raises(SystemExit) as ended:
            script(name).main()
    finally:
        for module in ("run", "report", "common", "shared"):
            sys.modules.pop(module, None)
    assert ended.value.code == 2 and "There is no file 'nowhere.json'" in capsys.readouterr().err


def test_the_plain_wise_of_a_sequence_has_a_layer_that_the_model_has() -> None:
    lifelong = script("lifelong/run")
    for n_layers, layer in ((30, 25), (32, 27), (6, 5), (1, 0)):
        lm = type("Small", (), {"adapter": type("Adapter", (), {"n_layers": n_layers})()})()
        assert lifelong.settings_for(lm, "wise, plain")[1]["layer"] == layer
        assert "layer" not in lifelong.settings_for(lm, "wise")[1]
