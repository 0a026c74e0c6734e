"""Negative forms: questions that an edit must not answer with the new object.

"Is Model Editing Built on Sand?" (arXiv 2510.00625): an edit that is a shortcut from the subject to the new object
fires on negated and on unrelated questions too, and leaves the model unable to judge the new fact. The forms are made
in `editlab.evaluation.questions`, in our own words; compare with the unedited row.
"""

from __future__ import annotations

from editlab.evaluation.answers import begins
from editlab.evaluation.cards import FORCED, FREE, Answers, Card, FactMetric, over
from editlab.evaluation.questions import Kind
from editlab.evaluation.scorer import Scored

_SOURCE = "own forms, after Is Model Editing Built on Sand?, arXiv 2510.00625"


def _said(q: Scored) -> float:
    return float(begins(q.answer or "", q.asked.targets["new"]))


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
            over(kind, _said),
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
            over(kind, lambda q: q.p("new")),
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
