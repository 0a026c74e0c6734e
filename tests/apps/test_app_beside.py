"""Paraphrases and neighbours in the form of one edit: of the fact that is edited, and of no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app_driver import App

JAPAN = {"ed_prompt": "The capital of Japan is", "ed_subject": "Japan", "ed_target": "Oslo", "ed_true": "Tokyo"}
BESIDE = {
    "ed_paraphrases": "Japan's capital is\nThe capital city of Japan is",
    "ed_neighbours": "The capital of Peru is => Lima\nThe capital of Cuba is",
}


def measured(app: App) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in app.table("own answer").to_dict("records"):
        found.setdefault(row["what"], []).append(row["prompt"])
    return found


def values(app: App) -> dict[str, Any]:
    return {w.key: w.value for w in app._widgets() if w.key in BESIDE}


def test_a_fact_of_ones_own_is_not_measured_with_what_stood_there_for_the_example(place: Path) -> None:
    app = App().open("edit")
    assert all(values(app).values())  # the example's
    app.fill(**JAPAN).do("Preview edit")
    found = measured(app)
    assert set(found) == {"the edit itself", "paraphrase (suggested)", "neighbour (suggested)"}
    assert all("Japan" in prompt for prompt in found["paraphrase (suggested)"])
    assert values(app) == dict.fromkeys(BESIDE, "")


def test_nor_with_what_was_typed_for_the_fact_before(place: Path) -> None:
    app = App().open("edit")
    app.fill(**JAPAN, **BESIDE).do("Preview edit")
    assert measured(app)["paraphrase"] == BESIDE["ed_paraphrases"].split("\n")
    assert app.table("own answer")["own answer"].tolist()[:4] == ["Tokyo", "Tokyo", "Tokyo", "Lima"]
    app.fill(ed_target="Rome").do("Preview edit")
    assert values(app) == BESIDE  # the same fact
    app.fill(ed_prompt="The capital of Kenya is", ed_subject="Kenya").do("Preview edit")
    assert "paraphrase" not in measured(app) and "neighbour" not in measured(app)


def test_a_link_carries_them(place: Path) -> None:
    app = App().open("edit", **JAPAN, **BESIDE)
    assert values(app) == BESIDE and "Not everything" not in app.said
    app.do("Preview edit")
    assert measured(app)["neighbour"] == ["The capital of Peru is", "The capital of Cuba is"]
    app = App().open("edit", **JAPAN)
    assert values(app) == dict.fromkeys(BESIDE, "")


def test_an_entry_of_the_ledger_brings_its_own(place: Path) -> None:
    app = App().open("edit")
    app.fill(**JAPAN, **BESIDE).do("Preview edit").click("Keep edit")
    app.fill(ed_prompt="The capital of Kenya is", ed_subject="Kenya").do("Preview edit")
    app.at.session_state["ed_tab"] = "Ledger"
    app.run().click("Duplicate to Single")
    assert values(app) == BESIDE
