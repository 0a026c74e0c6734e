"""Token accuracies: zsRE's scores as coded in kmeng01/memit, and EasyEdit's metrics under their own names.

The share of target tokens that are the most probable ones, each after the right earlier tokens. This gives partial
credit, and tells the model how long the answer is and how it begins: "The Mirage of Model Editing" (arXiv 2502.11177)
shows how far it lies above free answers. It is here so that numbers can be set beside published ones.
"""

from __future__ import annotations

from collections.abc import Callable

from editlab.evaluation.cards import FORCED, Answers, Card, FactMetric, mean, over
from editlab.evaluation.questions import Kind

_MEMIT = "Mass-Editing Memory in a Transformer, arXiv 2210.07229; kmeng01/memit"
_EASYEDIT = "EasyEdit, arXiv 2308.07269; zjunlp/EasyEdit"
_FORMULA = "mean over prompts of (1/n) sum over target tokens of [argmax = target token]"


def _accuracy(kind: Kind, role: str) -> Callable[[Answers, Answers], float | None]:
    return over(kind, lambda q: q.forced[role].token_accuracy if role in q.forced else None)


def _unchanged(now: Answers, base: Answers) -> float | None:
    """The share of places at which the most probable token is the one it was before the edit."""
    shares = []
    for kind, role in (("neighbour", "own"), ("locality", "own")):
        for q, was in zip(now.get(kind, ()), base.get(kind, ()), strict=True):  # type: ignore[call-overload]
            if role in q.forced:
                a, b = q.forced[role].predicted, was.forced[role].predicted
                shares.append(sum(x == y for x, y in zip(a, b, strict=True)) / len(a))
    return mean(shares)


METRICS = (
    FactMetric(
        Card(
            "zsre_efficacy",
            "Token accuracy of the new answer to the edited question",
            _FORMULA,
            FORCED,
            _MEMIT,
            "higher",
            0.0,
            note="The same number as rewrite_acc.",
        ),
        ("rewrite",),
        _accuracy("rewrite", "new"),
    ),
    FactMetric(
        Card(
            "zsre_paraphrase",
            "Token accuracy of the new answer to paraphrases of the question",
            _FORMULA,
            FORCED,
            _MEMIT,
            "higher",
            0.0,
            note="The same number as rephrase_acc.",
        ),
        ("paraphrase",),
        _accuracy("paraphrase", "new"),
    ),
    FactMetric(
        Card(
            "zsre_specificity",
            "Token accuracy of the right answers to unrelated questions",
            _FORMULA,
            FORCED,
            _MEMIT,
            "same",
            0.0,
            note="Low before any edit, as the model does not know most of these answers; hardly reacts to damage.",
        ),
        ("locality",),
        _accuracy("locality", "own"),
    ),
    FactMetric(
        Card("rewrite_acc", "Token accuracy at the edited prompt", _FORMULA, FORCED, _EASYEDIT, "higher", 0.0),
        ("rewrite",),
        _accuracy("rewrite", "new"),
    ),
    FactMetric(
        Card("rephrase_acc", "Token accuracy at paraphrases", _FORMULA, FORCED, _EASYEDIT, "higher", 0.0),
        ("paraphrase",),
        _accuracy("paraphrase", "new"),
    ),
    FactMetric(
        Card(
            "locality_acc",
            "Share of answer tokens that are predicted as before the edit, at neighbours and locality questions",
            "mean over prompts of (1/n) sum over answer tokens of [argmax after = argmax before]",
            FORCED,
            _EASYEDIT,
            "higher",
            None,
            ("locality", "neighborhood_acc"),
            "Right or wrong answers alike, so it does not compare with zsre_specificity; 1 for the unedited model.",
        ),
        ("neighbour", "locality"),
        _unchanged,
        by_name=True,
    ),
    FactMetric(
        Card(
            "portability_acc",
            "Token accuracy at questions whose answers follow from the new fact",
            _FORMULA,
            FORCED,
            _EASYEDIT,
            "higher",
            0.0,
            ("portability", "one_hop_acc"),
            "Reported, not expected to be high: locate-and-edit methods change one direction of one fact.",
        ),
        ("portability",),
        _accuracy("portability", "own"),
        by_name=True,
    ),
)
