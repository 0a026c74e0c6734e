"""CounterFact's scores, as its authors compute them (kmeng01/rome, arXiv 2202.05262, section 3.4 and appendix).

Everything here compares or reads probabilities of given targets: nothing says that the model would utter them.
Per prompt a target's score is its mean negative log-likelihood per token, so answers of different length compare.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from editlab.evaluation.cards import FORCED, Card, FactMetric, JointMetric, over
from editlab.evaluation.questions import Kind
from editlab.evaluation.scorer import Scored

_SOURCE = "Locating and Editing Factual Associations in GPT, arXiv 2202.05262; kmeng01/rome"


_NEIGHBOURS = (
    "A neighbour's own answer is the one that the data give (CounterFact's neighbours all share the true target), else "
    "what the unedited model says. Left out: neighbours whose own answer is the new one, and those whose own answer is "
    "not the true target and that are edited themselves."
)


def _wins(winner: str, loser: str) -> Callable[[Scored], float | None]:
    def wins(q: Scored) -> float | None:
        if winner not in q.forced or loser not in q.forced or _is_no_neighbour(q):
            return None
        return float(q.forced[winner].nll < q.forced[loser].nll)

    return wins


def _margin(winner: str, loser: str) -> Callable[[Scored], float | None]:
    def margin(q: Scored) -> float | None:
        p, other = q.p(winner), q.p(loser)
        return None if p is None or other is None or _is_no_neighbour(q) else p - other

    return margin


def _argmax(role: str) -> Callable[[Scored], float | None]:
    return lambda q: float(q.forced[role].is_argmax) if role in q.forced and not _is_no_neighbour(q) else None


def _is_no_neighbour(q: Scored) -> bool:
    """Where nothing can be seen: the own answer is the new one, or another edit has replaced it.

    Neighbours that share the true answer are scored as published, whatever else is edited.
    """
    return q.asked.kind == "neighbour" and (q.asked.is_new or (q.asked.is_edited and "true" not in q.asked.targets))


def _of_kind(kind: Kind, name: str, letter: str, role: str, where: str, note: str) -> tuple[FactMetric, ...]:
    """Success, magnitude and argmax of one kind of prompt; `role` is the target that should win there."""
    other = "true" if role == "new" else "new"
    is_kept = role == "own"
    return (
        FactMetric(
            Card(
                name,
                f"Share of {where} at which the {role} target is more probable than the {other} one",
                f"mean over prompts of [NLL({role}) < NLL({other})], NLL = mean negative log-likelihood per token",
                FORCED,
                _SOURCE,
                "same" if is_kept else "higher",
                0.5,
                (f"{letter}S",),
                f"{note} The unedited model's value is the baseline to look at, not one half.",
            ),
            (kind,),
            over(kind, _wins(role, other)),
        ),
        FactMetric(
            Card(
                f"{name}_magnitude",
                f"By how much the {role} target is more probable at {where}",
                f"mean over prompts of exp(-NLL({role})) - exp(-NLL({other}))",
                FORCED,
                _SOURCE,
                "same" if is_kept else "higher",
                0.0,
                (f"{letter}M",),
            ),
            (kind,),
            over(kind, _margin(role, other)),
        ),
        FactMetric(
            Card(
                f"{name}_argmax",
                f"Share of {where} at which every token of the {role} target is the most probable one",
                "mean over prompts of [argmax = target token, at every target token]",
                FORCED,
                f"{_SOURCE} (its *_acc)",
                "same" if is_kept else "higher",
                0.0,
                (f"{letter}A",),
                "The same as: greedy decoding begins with the target's tokens. Chance: one in the vocabulary.",
            ),
            (kind,),
            over(kind, _argmax(role)),
        ),
    )


def harmonic(*means: np.ndarray) -> np.ndarray:
    """The harmonic mean; 0 where any of them is 0."""
    stacked = np.stack(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = stacked.shape[0] / (1 / stacked).sum(0)
    return np.where((stacked <= 0).any(0), 0.0, value)


METRICS = (
    *_of_kind("rewrite", "efficacy", "E", "new", "edited prompts", "Needs a true target."),
    *_of_kind("paraphrase", "paraphrase", "P", "new", "paraphrases", "Needs a true target."),
    *_of_kind("neighbour", "neighbourhood", "N", "own", "prompts about neighbours", _NEIGHBOURS),
    JointMetric(
        Card(
            "score",
            "Harmonic mean of efficacy, paraphrase and neighbourhood",
            "3 / (1/ES + 1/PS + 1/NS) of the three means over the data set, not a mean of scores per fact",
            FORCED,
            _SOURCE,
            "higher",
            0.5,
            ("S",),
        ),
        ("efficacy", "paraphrase", "neighbourhood"),
        harmonic,
    ),
    FactMetric(
        Card(
            "attribute",
            "Share of prompts about subjects whose true answer is the new target at which it beats the old one",
            "mean over attribute prompts of [NLL(new) < NLL(true)]",
            FORCED,
            _SOURCE,
            "same",
            0.5,
        ),
        ("attribute",),
        over("attribute", _wins("new", "true")),
    ),
)
