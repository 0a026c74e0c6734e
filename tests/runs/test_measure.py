"""One edit, measured."""

from __future__ import annotations

from tiny_lm import make_lm

from editlab import Fact
from editlab.runs import edit_and_measure


def test_prompts_that_are_suggested_are_shown_and_no_part_of_the_fact() -> None:
    lm = make_lm("llama")
    fact = Fact(prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris")
    report = edit_and_measure(lm, fact, "ft", {"layer": 1, "steps": 1})
    assert {row.kind for row in report.rows if row.is_suggested} == {"paraphrase", "neighbour"}
    assert report.fact == fact
    (request,) = report.entry.edit.requests
    assert Fact.model_validate(request) == fact
