"""What a report of an edit counts, and whose probabilities it shows."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from editlab import Fact
from editlab.evaluation.questions import SHOWN, asked
from editlab.evaluation.scorer import Forced, Scored
from editlab.report import EditReport, ReportRow, compare, overview
from editlab.state.edit import Edit
from editlab.state.ledger import Entry

SPAIN = "The capital of Spain is"
FACT = Fact(
    prompt="The capital of {} is",
    subject="France",
    target_new="Rome",
    target_true="Paris",
    neighbours=(
        {"prompt": "The capital of Germany is", "answers": ["Berlin"]},
        {"prompt": "The capital of Italy is", "answers": ["Rome"]},
        {"prompt": "The capital of Peru is", "answers": ["Lima"]},
        SPAIN,
    ),
    locality=({"prompt": "The capital of Greece is", "answers": ["Athens"]},),
)
BEFORE = {"France": " Paris.", "Germany": " Berlin.", "Italy": " Rome", "Peru": " Cuzco", "Spain": " Madrid. It is a"}
AFTER = {"France": " Rome.", "Germany": " Berlin. It is", "Italy": " Rome", "Peru": " Rome", "Spain": " Rome"}
GREECE = {"Greece": " Athens"}


def rows(written: tuple[Fact, ...] = (), **after: str) -> tuple[ReportRow, ...]:
    questions = [q.with_answer("Madrid") if q.prompt == SPAIN else q for q in asked([FACT], SHOWN, written)]

    def scored(answers: dict[str, str]) -> list[Scored]:
        forced = {"new": Forced(1.0, (1,), (1,)), "own": Forced(2.0, (1,), (1,)), "true": Forced(3.0, (1,), (1,))}
        return [Scored(q, {role: forced[role] for role in q.targets}, answers[q.prompt.split()[3]]) for q in questions]

    return compare(FACT, scored(BEFORE | GREECE), scored(AFTER | GREECE | after))


def report(found: tuple[ReportRow, ...]) -> EditReport:
    return EditReport(Entry("e1", "", Edit("by-hand", {}, [], {}), "active", "", "", ""), FACT, found, 1.0)


def text_of(shown: Any) -> str:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_every_prompt_has_the_probability_of_its_own_answer() -> None:
    assert [row.own for row in rows()] == ["Paris", "Berlin", "Rome", "Lima", "Madrid", "Athens"]
    table = text_of(report(rows()).table())
    assert "P(Rome)" in table and "P(own answer)" in table and "Berlin: 13.5% -> 13.5%" in table
    assert "P(true)" not in table and "P(new)" not in table
    assert "P(own answer)" in report(rows())._repr_html_() and "Berlin: " in report(rows())._repr_html_()


def test_only_what_can_show_damage_is_counted_as_disturbed() -> None:
    by_prompt = {row.prompt.split()[3]: row for row in rows()}
    # More words behind the same answer are no change, by the rule that decides whether an edit fires.
    assert not by_prompt["Germany"].changed and by_prompt["Spain"].changed and by_prompt["Peru"].changed
    assert by_prompt["Italy"].apart == "its own answer is the new one"
    assert by_prompt["Peru"].apart == "the model did not know it before"
    assert [by_prompt[c].apart for c in ("France", "Germany", "Spain", "Greece")] == [""] * 4
    found = report(rows())
    assert found.fires and found.disturbed == (1, 3) and found.apart == (1, 2)
    assert "1 of 3 neighbours answer differently (2 more apart, 1 changed)" in found.headline
    assert "1 of 3 changed (2 more apart, 1 changed)" in text_of(overview([found, found]))
    assert {record["apart"] for record in found.to_records()} >= {"", "its own answer is the new one"}


def test_a_neighbour_that_another_edit_of_the_run_has_changed_is_apart() -> None:
    germany = FACT.model_copy(update={"subject": "Germany", "target_new": "Madrid", "target_true": "Berlin"})
    found = report(rows((FACT, germany), Germany=" Madrid"))
    assert found.disturbed == (1, 2) and found.apart == (2, 3)
    assert [row.apart for row in found.rows if "Germany" in row.prompt] == ["it is edited itself"]


@pytest.mark.parametrize("old", [{}, {"own": "Paris", "accepted": ["Paris"]}])
def test_rows_of_older_journals_are_read(old: dict[str, Any]) -> None:
    row = ReportRow("f", "neighbour", "?", (" Paris.", " Paris. It"), None, None, **old)
    assert not row.changed and row.may_show_damage
