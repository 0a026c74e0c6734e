"""Every page as it opens, and what its main button gives."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from app_driver import App
from editlab_apps.catalogue import page_files
from editlab_apps.tabs.facts_file import read_file

from editlab import registry
from editlab.errors import EditlabError

PAGES = [page.url for page in page_files()]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_filled_in_and_ready(app: App, page: str) -> None:
    app.open(page)
    assert [h.value for h in app.at.header] == [page.capitalize()]
    assert not app.at.error
    assert "factworld-llama" in app.sidebar and "base" in app.sidebar and "Compute: idle" in app.sidebar
    texts = [w.value for w in (*app.at.text_input, *app.at.text_area) if w.key and w.key.endswith("_prompt")]
    # The example is one that this model knows.
    assert set(texts) <= {"The capital of France is"}
    assert texts or page not in ("overview", "edit", "locate", "probe")


@pytest.mark.parametrize("page", PAGES)
def test_without_a_model_a_page_says_where_to_get_one(place: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    (place / "half").mkdir()
    (place / "half" / "config.json").write_text("{}")
    monkeypatch.setenv("EDITLAB_MODEL", str(place / "half"))
    app = App().open(page)
    assert "No model is loaded." in [c.value for c in app.at.sidebar.caption]
    if page == "overview":
        assert str(place / "half") in app.said
        assert "Load" in app.enabled
        app.fill(ov_path="factworld-llama").click("Load")
        assert app.metrics["Layers"] == "6" and "factworld-llama" in app.sidebar and not app.at.error
    else:
        assert "No model is loaded." in app.said
        assert len(app.at.button) == 0


def test_overview_answers_and_shows_the_edited_answer_beside_it(app: App) -> None:
    app.fill(ov_prompt="The capital of France is", ov_tokens=2).click("Answer")
    assert app.codes[0].startswith("Paris")
    assert app.table("probability")["probability"].is_monotonic_decreasing
    app.open("edit").do("Preview edit").click("Keep edit").open().fill(ov_tokens=2).click("Answer")
    assert [said[:4] for said in app.codes[:2]] == ["Pari", "Rome"]
    assert len([d for d in app.at.dataframe if "probability" in d.value.columns]) == 2


def test_an_edit_is_previewed_kept_and_taken_back(app: App) -> None:
    base = app.lab.lm.state_hash
    app.open("edit").do("Preview edit")
    assert app.lab.lm.state_hash == base, "a preview changed the model"
    before, after = app.codes[:2]
    assert before.startswith("Paris") and after.startswith("Rome")
    rows = app.table("changed")
    assert list(rows["what"])[:2] == ["the edit itself", "paraphrase"] and len(rows) == 5
    assert rows["changed"][0] == "● changed"
    assert float(app.metrics["Mean KL, nats"]) > 0
    app.click("Discard")
    assert "Nothing previewed yet." in app.said and app.lab.lm.state_hash == base
    app.do("Preview edit").click("Keep edit")
    assert "1 edit active" in app.sidebar and "Edits live in this tab until saved." in app.sidebar
    app.click("Undo last")
    assert app.lab.lm.state_hash == base and "base" in app.sidebar


@pytest.mark.parametrize("method", registry.names())
def test_every_method_has_a_form_of_its_own_settings(place: Path, method: str) -> None:
    app = App().open("edit", ed_method=method)
    assert not app.at.error
    fields = {w.key for w in app._widgets() if w.key and w.key.startswith(f"ed.{method}.")}
    own = set(registry.get(method).Config.model_fields) - {"layer", "layers"}
    assert fields == {f"ed.{method}.{name}" for name in own}


def test_a_side_memory_shows_who_answers(place: Path) -> None:
    app = App().open("edit", ed_method="wise").fill(**{"ed.wise.steps": 10}).do("Preview edit")
    routes = app.table("margin")
    assert len(routes) == 5 and routes["answers"][0] != "model" and routes["margin"][0] > 1


def test_the_ledger_shows_the_model_after_the_first_k_edits(app: App) -> None:
    for subject, answer in (("France", "Rome"), ("Japan", "Oslo")):
        app.open("edit")
        app.fill(ed_prompt=f"The capital of {subject} is", ed_subject=subject, ed_target=answer, ed_true="")
        app.do("Preview edit").click("Keep edit")
    both = app.lab.lm.state_hash
    tab = _ledger(app)
    assert list(tab.table("entry")["state"]) == ["active", "active"]
    tab.fill(ed_state_prompt="The capital of Japan is", ed_state=1).run()
    assert tab.codes[-1].startswith("Tokyo")
    tab.fill(ed_state=2).run()
    assert tab.codes[-1].startswith("Oslo")
    first = tab.table("entry")["entry"][0]
    tab.fill(ed_entry=first).run().click("Remove")
    assert list(tab.table("entry")["state"]) == ["removed", "active"]
    assert tab.table("entry")["note"][1] == "solved on another state"
    tab.fill(ed_entry=first).run().click("Redo")
    assert tab.lab.lm.state_hash == both
    tab.fill(ed_entry=first).run().do("Remove and replay")
    assert [e.edit.requests[0]["subject"] for e in tab.lab.lm.ledger.active] == ["Japan"]
    assert not tab.lab.lm.ledger.active[0].solved_elsewhere


def _ledger(app: App) -> App:
    """The same session, on the ledger's tab."""
    app.at.session_state["ed_tab"] = "Ledger"
    return app.run()


def test_a_batch_makes_a_run_that_the_runs_page_opens(app: App, place: Path) -> None:
    app.at.session_state["ed_tab"] = "Batch"
    app.open("edit")
    app.do("Edit 1 fact")
    assert app.metrics["Facts that fire"] == "1 of 1" and app.metrics["Failed rows"] == "0"
    assert app.lab.lm.base_hash == app.lab.lm.state_hash, "a batch changed the ledger"
    (folder,) = (place / "runs").iterdir()
    app.open("runs")
    listed = app.table("run")
    assert list(listed["run"]) == [folder.name] and list(listed["state"]) == ["complete"]
    app.click("Put its edits in force")
    assert "1 edit active" in app.sidebar
    app.do("Evaluate")
    assert sorted(app.table("run")["kind"]) == ["edit", "eval"]
    (evaluation,) = (name for name in app.table("run")["run"] if name != folder.name)
    app.fill(rn_run=evaluation).run()
    found = app.table("metric").set_index("metric")
    assert found.loc["efficacy", "edited"] == 1 and found.loc["efficacy", "unedited"] == 0


def test_a_trace_is_drawn_and_its_layers_go_to_the_edit_page(app: App, place: Path) -> None:
    app.open("edit", ed_tab="Batch").open("locate").fill(loc_n=6).do("Trace")
    clean, corrupted = (float(app.metrics[f"P {state}"].rstrip("%")) for state in ("clean", "corrupted"))
    assert clean > 90 and corrupted < clean / 2
    assert "layers 0 to" in "".join(m.value for m in app.at.markdown)
    app.fill(loc_table=True).run()
    assert len(app.table("layer")) == 6 * 6
    (use,) = (b.label for b in app.at.button if b.label.startswith("Use layer"))
    app.click(use)
    assert [h.value for h in app.at.header] == ["Edit"]
    assert "Preview edit" in app.enabled
    assert app.at.session_state["ed_layers"] == use.split()[2]


def test_a_traces_settings_are_opened_again_from_its_run(app: App) -> None:
    app.open("locate").fill(loc_n=2, loc_seed=5).do("Trace").fill(loc_n=4, loc_seed=0).run()
    app.open("runs").click("Open with these settings")
    assert {w.key: w.value for w in app._widgets() if w.key in ("loc_n", "loc_seed")} == {"loc_n": 2, "loc_seed": 5}


def test_the_ledger_is_one_click_away(app: App) -> None:
    app.open("edit", ed_tab="Batch").open("overview").click("Open the ledger")
    assert "The ledger is empty" in app.said


def test_work_is_saved_as_a_run_and_loads_again(app: App, place: Path) -> None:
    app.open("edit").do("Preview edit").click("Keep edit")
    state = app.lab.lm.state_hash
    app.click("Save work")
    assert "until saved" not in app.sidebar
    other = App().open("runs").click("Put its edits in force")
    assert other.lab.lm.state_hash == state


def test_an_uploaded_file_is_read_as_the_command_line_reads_it() -> None:
    rows = [
        {"prompt": "{} is in", "subject": "Rome", "target_new": "France"},
        {"prompt": "no place", "subject": "Rome", "target_new": "France"},
    ]
    facts, flawed = read_file("facts.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    assert [f.text for f in facts] == ["Rome is in"]
    assert [f.row for f in flawed] == [3] and "'Rome' does not occur in the prompt 'no place'" in flawed[0].problem
    with pytest.raises(EditlabError):
        read_file("facts.json", b"\x00\x01")


def test_pages_are_files_and_say_where_they_belong(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)

    write("b.py", 'TITLE = "B"\nSECTION = "Analyse"\nORDER = 2\nraise RuntimeError')
    write("a.py", 'TITLE = "A"\nSECTION = "Model"\nORDER = 9\n')
    write("new.py", 'TITLE = "New"\nSECTION = "Own"\nORDER = 0\n')
    assert [page.title for page in page_files(tmp_path)] == ["A", "B", "New"]
    write("bad.py", 'TITLE = "Bad"\n')
    with pytest.raises(ValueError, match=r"bad\.py does not state SECTION, ORDER"):
        page_files(tmp_path)
