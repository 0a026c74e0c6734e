"""One edit, measured."""

from __future__ import annotations

from tiny_lm import make_lm

from editlab import Fact
from editlab.data.suggest import with_suggestions
from editlab.runs import edit_and_measure


def test_prompts_that_are_suggested_are_shown_and_no_part_of_the_fact() -> None:
    lm = make_lm("llama")
    fact = Fact(prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris")
    report = edit_and_measure(lm, fact, "ft", {"layer": 1, "steps": 1})
    assert {row.kind for row in report.rows if row.is_suggested} == {"paraphrase", "neighbour"}
    assert report.fact == fact
    (request,) = report.entry.edit.requests
    assert Fact.model_validate(request) == fact


def test_suggested_neighbours_have_answers_of_their_own_where_the_table_knows_them() -> None:
    capital = Fact(prompt="The capital of {} is", subject="France", target_new="Rome")
    shown, _, suggested = with_suggestions(capital)
    assert suggested and {q.prompt: q.answers for q in shown.neighbours}["The capital of Germany is"] == ("Berlin",)
    river = capital.model_copy(update={"prompt": "The river through the capital of {} is"})
    assert [q.answers for q in with_suggestions(river)[0].neighbours] == [()] * 4
    language = Fact(prompt="The language of {} is", subject="France", target_new="Thai", target_true="French")
    assert [q.answers for q in with_suggestions(language)[0].neighbours] == [()] * 4
    assert all(q.answers for q in with_suggestions(capital.model_copy(update={"subject": "Anna"}))[0].neighbours)
