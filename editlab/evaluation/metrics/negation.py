"""Negative forms: questions that an edit must not answer with the new object.

"Is Model Editing Built on Sand?" (arXiv 2510.00625): an edit that is a shortcut from the subject to the new object
fires on negated and on unrelated questions too, and leaves the model unable to judge the new fact. The forms are made
in `editlab.evaluation.questions`, in our own words; compare with the unedited row.
"""

from __future__ import annotations

from collections.abc import Callable

from editlab.evaluation.answers import begins
from editlab.evaluation.cards import FORCED, FREE, Answers, Card, FactMetric, mean
from editlab.evaluation.questions import Kind

_SOURCE = "own forms, after Is Model Editing Built on Sand?, arXiv 2510.00625"


def _said(kind: Kind) -> Callable[[Answers, Answers], float | None]:
    def of_fact(now: Answers, base: Answers) -> float | None:
        return mean([float(begins(q.answer or "", q.asked.targets["new"])) for q in now.get(kind, ())])

    return of_fact


def _probability(kind: Kind) -> Callable[[Answers, Answers], float | None]:
    def of_fact(now: Answers, base: Answers) -> float | None:
        return mean([p for q in now.get(kind, ()) if (p := q.p("new")) is not None])

    return of_fact


def _judged(now: Answers, base: Answers) -> float | None:
    """Whether "true" gains more over "false" after the new statement than after the old one."""
    margin = {q.asked.name: q.forced["no"].nll - q.forced["yes"].nll for q in now.get("fact_check", ())}
    return float(margin["new"] > margin["true"]) if {"new", "true"} <= margin.keys() else None


def _of_kind(kind: Kind, what: str) -> tuple[FactMetric, ...]:
    return (
        FactMetric(
            Card(
                f"{kind}_said",
                f"Share of {what} that are answered with the new target",
                "mean over forms of [the answer begins with the new target, as whole words]",
                FREE,
                _SOURCE,
                "lower",
                0.0,
            ),
            (kind,),
            _said(kind),
            needs_answers=True,
        ),
        FactMetric(
            Card(
                f"{kind}_probability",
                f"Probability of the new target at {what}",
                "mean over forms of exp(-NLL(new))",
                FORCED,
                _SOURCE,
                "lower",
                0.0,
            ),
            (kind,),
            _probability(kind),
        ),
    )


METRICS = (
    *_of_kind("negated", "negated questions"),
    *_of_kind("unrelated", "unrelated questions about the subject"),
    FactMetric(
        Card(
            "fact_check",
            "Share of facts whose new statement is judged truer than the old one",
            "mean of [NLL(false) - NLL(true) after the new statement > the same after the old one]",
            FORCED,
            _SOURCE,
            "higher",
            0.5,
            note="A model that cannot judge statements stays at chance, edited or not.",
        ),
        ("fact_check",),
        _judged,
    ),
)
