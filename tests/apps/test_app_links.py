"""Links: what they set, what they cannot set, and what never stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_driver import App

from editlab.data.stimuli import KINDS


def test_a_link_opens_its_page_with_its_settings(place: Path) -> None:
    link = {"ed_method": "emmet", "ed_prompt": "The capital of Japan is", "ed_subject": "Japan", "ed_target": "Oslo"}
    app = App().open("edit", **link)
    widgets = {w.key: w.value for w in app._widgets()}
    assert {key: widgets[key] for key in link} == link
    assert "Not everything" not in app.said
    app = App().open("locate", loc_n="3", loc_seed="7")
    assert {w.key: w.value for w in app._widgets() if w.key in ("loc_n", "loc_seed")} == {"loc_n": 3, "loc_seed": 7}


@pytest.mark.parametrize("asked", ["order", "Order: which of two passages came first (a control)"])
def test_a_choice_can_be_linked_by_itself_and_as_it_is_drawn(place: Path, asked: str) -> None:
    app = App().open("memory", me_verb=asked)
    assert {w.key: w.value for w in app._widgets()}["me_verb"] == "order"
    assert "Not everything" not in app.said
    drawn = KINDS["sentence"][0]
    app = App().open("memory", me_kind="sentence" if asked == "order" else f"sentence: {drawn}")
    assert {w.key: w.value for w in app._widgets()}["me_kind"] == "sentence"
    assert "Not everything" not in app.said


def test_a_choice_that_does_not_exist_is_said(place: Path) -> None:
    app = App().open("memory", me_verb="forget")
    assert "question forget; it is now recognize" in app.said


def test_a_tab_can_be_linked(place: Path) -> None:
    assert "The ledger is empty" in App().open("edit", ed_tab="Ledger").said
    assert "Edit 1 fact" in App().open("edit", ed_tab="Batch").enabled


def test_what_a_link_cannot_have_is_said(place: Path) -> None:
    app = App().open("locate", loc_win="99", loc_n="many")
    assert "Not everything in the link could be used." in app.said
    assert "window 99" in app.said and "this model has layers 0 to 5" in app.said and "noise samples many" in app.said
    app.click("Dismiss")
    assert "Not everything" not in app.said
    app = App().open("edit", ed_method="nonsense", ed_layers="2")
    assert "method nonsense; it is now rome" in app.said and "ed_layers" not in app.said
    app = App().open("overview", m="00000000")
    assert "model 00000000" in app.said and "this is factworld-llama" in app.said
    assert "no such folder" not in app.said


def test_links_carry_settings_and_never_edits(app: App) -> None:
    app.open("edit").fill(ed_target="Oslo").do("Preview edit").click("Keep edit")
    carried = {name: "".join(value) for name, value in app.at.query_params.items()}
    assert set(carried) <= {"m", "ed_target", "ed_tab", "ed_method", "ed_layers"}
    assert carried["m"] == app.lab.lm.base_hash[:8]


def test_texts_can_be_kept_out_of_links(app: App) -> None:
    app.at.session_state["editlab.private"] = True
    app.open("edit").fill(ed_target="Oslo").run()
    assert "Oslo" not in str(dict(app.at.query_params))


def test_a_setting_that_does_not_exist_is_named(place: Path) -> None:
    app = App().open("locate", loc_windw="3", loc_n="4")
    assert "There is no setting 'loc_windw' on this page." in app.said and "loc_n" not in app.said
    app.click("Dismiss")
    assert "Not everything" not in app.said
    for page in ("overview", "edit", "runs"):
        assert "no setting" not in App().open(page, m="").said


def test_texts_of_any_kind_can_be_asked_about(place: Path) -> None:
    link = {
        "ed_prompt": "The capital of Côte d’Ivoire (*the* `coast`) is",
        "ed_subject": "Côte d’Ivoire (*the* `coast`)",
    }
    app = App().open("edit", **link).fill(ed_target="東京", ed_true="").do("Preview edit")
    assert not app.at.error and app.codes[0]
    assert app.table("prompt")["prompt"][0] == link["ed_prompt"]
    app.click("Keep edit").open("edit", ed_tab="Ledger")
    assert "東京" in app.table("entry")["what"][0]


def test_a_prompt_that_is_too_long_is_refused_in_words(place: Path) -> None:
    app = App().open("overview", ov_prompt="word " * 3000)
    (error,) = app.at.error
    assert "tokens" in app.said and error.value and "Something broke" not in app.said
