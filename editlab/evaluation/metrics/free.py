"""What the model says by itself: exact match, the new target without the old one, and neighbours' answers.

Nothing is leaked to the model: neither the answer nor its length (compare "The Mirage of Model Editing", arXiv
2502.11177, whose rules on normalisation and natural stops these follow).
"""

from __future__ import annotations

from collections.abc import Callable

from editlab.evaluation.answers import first_sentence, is_exactly, normalised, prefers
from editlab.evaluation.cards import FREE, Answers, Card, FactMetric, mean, over
from editlab.evaluation.questions import Kind
from editlab.evaluation.scorer import Scored

_WILD = "The Mirage of Model Editing, arXiv 2502.11177 (WILD)"


def _exact(q: Scored) -> float | None:
    new = q.asked.targets.get("new")
    accepted = q.asked.accepted or (() if new is None else (new,))
    return float(is_exactly(q.answer or "", accepted)) if accepted else None


def _said(q: Scored) -> float:
    return float(prefers(q.answer or "", q.asked.targets["new"], q.asked.targets.get("true")))


def _same(kind: Kind) -> Callable[[Answers, Answers], float | None]:
    def of_fact(now: Answers, base: Answers) -> float | None:
        pairs = zip(now.get(kind, ()), base.get(kind, ()), strict=True)
        return mean(
            [
                float(normalised(first_sentence(a.answer or "")) == normalised(first_sentence(b.answer or "")))
                for a, b in pairs
            ]
        )

    return of_fact


def _of_kind(kind: Kind, name: str, where: str) -> tuple[FactMetric, ...]:
    return (
        FactMetric(
            Card(
                f"{name}_exact",
                f"Share of {where} answered with the new target and nothing else",
                "mean over prompts of [normalised answer up to a full stop or new line = normalised target]",
                FREE,
                _WILD,
                "higher",
                0.0,
                note="Strict for models that go on talking; teacher-forced *_argmax stands beside it.",
            ),
            (kind,),
            over(kind, _exact),
            needs_answers=True,
        ),
        FactMetric(
            Card(
                f"{name}_said",
                f"Share of {where} whose answer holds the new target and not the old one",
                "mean over prompts of [new target in the answer, as whole words, and old target not in it]",
                FREE,
                f"own definition, after {_WILD}",
                "higher",
                0.0,
            ),
            (kind,),
            over(kind, _said),
            needs_answers=True,
        ),
    )


def _kept(kind: Kind, name: str, where: str) -> FactMetric:
    return FactMetric(
        Card(
            f"{name}_same",
            f"Share of {where} answered word for word as before the edit",
            "mean over prompts of [normalised answers before and after are equal up to their natural end]",
            FREE,
            _WILD,
            "higher",
            note="1 for the unedited model.",
        ),
        (kind,),
        _same(kind),
        needs_answers=True,
    )


METRICS = (
    *_of_kind("rewrite", "efficacy", "edited prompts"),
    *_of_kind("paraphrase", "paraphrase", "paraphrases"),
    FactMetric(
        Card(
            "portability_exact",
            "Share of questions that follow from the new fact answered exactly, with any accepted answer",
            "mean over questions of [normalised answer up to its natural end is an accepted answer]",
            FREE,
            _WILD,
            "higher",
            0.0,
        ),
        ("portability",),
        over("portability", _exact),
        needs_answers=True,
        by_name=True,
    ),
    _kept("neighbour", "neighbourhood", "prompts about neighbours"),
    _kept("locality", "locality", "locality questions"),
)
