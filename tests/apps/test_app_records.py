"""The Runs page beyond opening one: again, compared, as a notebook; and the ledger's entries as a start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from app_driver import App
from editlab_apps import commands
from editlab_apps.clicks import take_row
from editlab_apps.notebooks import can_write, of_run
from editlab_apps.tabs.compare import differences
from editlab_apps.tabs.ledger import CHOSEN, TABLE

from editlab.runs.journal import Journal
from editlab.runs.records import list_runs, read_record


@pytest.fixture
def batch(app: App) -> App:
    """A session that has run a batch of one fact."""
    app.at.session_state["ed_tab"] = "Batch"
    return app.open("edit").do("Edit 1 fact")


def test_a_batch_is_run_again_with_the_same_outcome(batch: App, place: Path) -> None:
    batch.open("runs").do("Run again")
    first, second = list_runs(place / "runs")
    assert first.state == second.state == "complete" and first.fired == second.fired == 1
    states = [json.loads((run.folder / "journal.jsonl").read_text().splitlines()[-1]) for run in (first, second)]
    assert states[0]["state"] == states[1]["state"] != batch.lab.lm.base_hash


def test_a_batch_says_beforehand_what_it_will_cost(app: App, place: Path) -> None:
    app.at.session_state["ed_tab"] = "Batch"
    app.open("edit").do("What will it cost?")
    assert "1 fact in 1 edit: about" in app.said
    assert not (place / "runs").exists() and app.lab.lm.state_hash == app.lab.lm.base_hash


def test_evaluations_are_compared_score_by_score(batch: App, place: Path) -> None:
    batch.open("runs").do("Evaluate")
    (evaluation,) = (run.folder for run in list_runs(place / "runs") if run.kind == "eval")
    shutil.copytree(evaluation, place / "runs" / "20990101-eval-copy")
    batch.at.session_state["rn_tab"] = "Compare"
    batch.run()
    scores = batch.table("score")
    assert len(scores) == 2 and scores["score"].nunique() == 1
    paired = batch.table("q")
    assert (paired["difference"] == 0).all() and len(paired) > 3
    assert list(batch.table("setting").columns[1:]) == list(scores["run"])


def test_only_evaluations_have_scores(batch: App) -> None:
    batch.open("runs").do("Run again")
    batch.at.session_state["rn_tab"] = "Compare"
    batch.run()
    assert "Scores can be compared only between evaluations." in batch.said
    assert not [d for d in batch.at.dataframe if "score" in d.value.columns]


def test_what_differs_between_manifests() -> None:
    def manifest(kind: str, layer: int, **more: object) -> dict[str, object]:
        return {"kind": kind, "config": {"settings": {"layer": layer}, **more}, "written": str(layer)}

    found = differences({"a": manifest("edit", 1), "b": manifest("edit", 2), "c": manifest("edit", 2, seed=0)})
    assert found.set_index("setting").T.to_dict("list") == {
        "config.settings.layer": ["1", "2", "2"],
        "config.seed": ["", "", "0"],
    }


def test_a_runs_notebook_does_the_same(batch: App, place: Path) -> None:
    (run,) = list_runs(place / "runs")
    notebook = of_run(run)
    assert notebook["nbformat"] == 4 and json.loads(json.dumps(notebook)) == notebook
    shown: list[object] = []
    names: dict[str, object] = {"display": shown.append}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert len(shown) == 1
    again = next(r for r in list_runs(place / "runs") if r.name != run.name)
    assert again.fired == run.fired == 1


def test_a_traces_notebook_traces(app: App, place: Path) -> None:
    app.open("locate").fill(loc_n=2).do("Trace")
    (run,) = list_runs(place / "runs")
    names: dict[str, object] = {}
    for cell in of_run(run)["cells"][1:]:
        exec(cell["source"], names)
    assert names["found"].headline == run.headline  # type: ignore[attr-defined]


def test_a_probes_notebook_probes(place: Path) -> None:
    App().open("probe", pr_name="logit-lens").do("Run")
    (run,) = list_runs(place / "runs")
    names: dict[str, object] = {}
    for cell in of_run(run)["cells"][1:]:
        exec(cell["source"], names)
    assert names["found"].headline == run.headline  # type: ignore[attr-defined]
    assert str(commands.of_run(run)).startswith("editlab probe logit-lens")


def test_an_evaluations_notebook_measures_as_it_did(batch: App, place: Path) -> None:
    batch.open("runs").do("Evaluate")
    (run,) = (run for run in list_runs(place / "runs") if run.kind == "eval")
    assert commands.of_run(run) == f"editlab runs show {run.folder}"
    shutil.copytree(run.folder, place / "runs" / "again")
    file = place / "runs" / "again" / "evaluation.json"
    saved = json.loads(file.read_text())
    saved["settings"]["mode"], saved["settings"]["suite"]["metrics"] = "single", ["efficacy"]
    file.write_text(json.dumps(saved))
    last = of_run(read_record(file.parent))["cells"][-1]["source"]
    assert last == "lm.evaluate(mode='single', metrics=['efficacy'])"


@pytest.mark.parametrize(
    ("kind", "config", "command", "cell"),
    [
        ("channels", {"modes": ["qk"]}, None, "found = scan(lm, Config(modes=['qk']))"),
        ("channels", {"task": "lists"}, None, None),
        ("conflicts", {"command": "compare", "relation": "capital"}, None, None),
        ("conflicts", {"command": "prune", "relation": "capital", "grid": [1], "seed": 2}, None, "'grid': [1], 'seed'"),
        ("demo", {}, None, None),
        ("study", {}, "editlab study show FOLDER", None),
        (
            "tune",
            {"method": "rome", "grid": {"layer": [1]}, "limit": 5, "batch": False},
            "editlab tune --config FOLDER/config.yaml",
            "tune(lm, facts, 'rome', {'layer': [1]}, batch=False)",
        ),
    ],
)
def test_only_what_works_is_offered(
    kind: str, config: dict[str, object], command: str | None, cell: str | None, tmp_path: Path
) -> None:
    manifest = {"kind": kind, "config": config, "written": "", "base": {"name": "factworld-llama"}, "edits": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    run = read_record(tmp_path)
    assert commands.of_run(run) == (command and command.replace("FOLDER", str(tmp_path)))
    assert can_write(run) is (cell is not None)
    if cell is not None:
        assert cell in of_run(run)["cells"][-1]["source"]


def test_an_interrupted_study_is_gone_on_with_by_its_command(app: App, place: Path) -> None:
    folder = place / "runs" / "20990101-study-x"
    folder.mkdir(parents=True)
    Journal(folder).add("planned", kind="study", basis={}, plan={}, model="factworld-llama")
    app.open("runs")
    assert "Resume" not in app.enabled and any("editlab resume" in code for code in app.codes)


def test_an_entry_of_the_ledger_fills_the_form_of_an_edit(app: App) -> None:
    app.open("edit")
    app.fill(ed_prompt="The capital of Japan is", ed_subject="Japan", ed_target="Oslo", ed_true="")
    app.do("Preview edit").click("Keep edit")
    app.fill(ed_subject="France", ed_prompt="The capital of France is")
    app.at.session_state["ed_tab"] = "Ledger"
    app.run().click("Duplicate to Single")
    filled = {w.key: w.value for w in app._widgets() if w.key in ("ed_prompt", "ed_subject", "ed_target", "ed_method")}
    assert filled == {
        "ed_method": "rome", "ed_prompt": "The capital of Japan is", "ed_subject": "Japan", "ed_target": "Oslo",
    }  # fmt: skip


def test_a_click_on_a_row_of_the_ledger_chooses_its_entry(app: App) -> None:
    for target in ("Rome", "Oslo"):
        app.open("edit").fill(ed_target=target).do("Preview edit").click("Keep edit")
    app.at.session_state["ed_tab"] = "Ledger"
    app.run()
    first, second = (entry.id for entry in app.lab.lm.ledger)
    box = app.at.selectbox(key=CHOSEN)
    assert box.value == second
    state: dict[str, object] = {TABLE: {"selection": {"rows": [0]}}}
    take_row(state, TABLE, CHOSEN, [first, second])
    assert state[CHOSEN] == first
    state[TABLE] = {"selection": {"rows": []}}
    take_row(state, TABLE, CHOSEN, [first, second])
    assert state[CHOSEN] == first
    app.at.session_state[CHOSEN] = first
    app.run().click("Remove")
    assert [entry.is_active for entry in app.lab.lm.ledger] == [False, True]


def test_a_click_on_a_row_opens_the_run(batch: App, place: Path) -> None:
    batch.open("runs").do("Run again")
    older = batch.table("run")["run"][1]
    state: dict[str, object] = {"rn_table": {"selection": {"rows": [1]}}}
    assert take_row(state, "rn_table", "rn_run", list(batch.table("run")["run"])) and state["rn_run"] == older
    batch.at.session_state["rn_run"] = older
    assert any(older in code for code in batch.run().codes)


def test_a_batch_shows_its_shares_over_the_edits(batch: App) -> None:
    from editlab.viz.edits import edits_so_far

    (report,) = batch.lab.outcomes["edit.batch"].result.result.reports
    rows = [row for row in report.rows if row.kind == "neighbour"]
    figure = edits_so_far([report, report])
    fires, changed = figure.data
    # All are scored after the last edit: the figure must not say that they are as they were when x were made.
    assert "of the first %{x} facts" in fires.hovertemplate and "first facts" in figure.layout.xaxis.title.text
    assert list(fires.y) == [1, 1] and list(fires.x) == [1, 2]
    assert list(changed.y) == [sum(row.changed for row in rows) / len(rows)] * 2
