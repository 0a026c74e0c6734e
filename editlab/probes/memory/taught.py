"""Facts that a model was taught, however: what it says, what it prefers, and what else it does.

Of each fact, teacher-forced in one batch: the new answer after the prompt and after paraphrases, the true answer, and
other answers of the same kind. Recall is exact: greedy decoding says the new answer. Recognition is a choice between
the new answer and each other one, by mean log-probability per token; a model that was taught nothing has a level of its
own here, which is measured and reported, because answers differ in how likely they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editlab.evaluation.scorer import Forced, force

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.joining import TargetPrefix
    from editlab.lm import LM

OTHERS = 3
PARAPHRASES = 2
NEIGHBOURS = 2


@dataclass(frozen=True)
class FactReading:
    """One fact under one state of the model.

    Attributes:
        lp: mean log-probability per token of the new answer, in nats. exact: greedy decoding says it.
        recognised: share of other answers that it is preferred to (a tie counts half);
            NaN without any.
        paraphrased: share of paraphrases after which it is said; NaN without any.
        neighbours: share of neighbours after which their own answer is said; NaN without any
            that has one.
    """

    lp: float
    exact: bool
    recognised: float
    paraphrased: float
    neighbours: float

    def to_record(self) -> dict[str, float | int | None]:
        """Plain values; None for what there is none of."""
        shares = {"recognised": self.recognised, "paraphrased": self.paraphrased, "neighbours": self.neighbours}
        known = {name: None if math.isnan(value) else value for name, value in shares.items()}
        return {"lp": self.lp, "exact": int(self.exact), **known}


def others_of(facts: Sequence[Fact], seed: int = 0) -> list[tuple[str, ...]]:
    """For each fact, other answers to choose from: of other facts of its relation, and its true one."""
    rng = random.Random(f"others {seed}")
    found = []
    for fact in facts:
        pool = [f.target_new for f in facts if f.relation == fact.relation]
        pool += [f.target_true for f in facts if f.relation == fact.relation and f.target_true]
        rest = sorted({answer for answer in pool if answer not in (fact.target_new, fact.target_true)})
        chosen = rng.sample(rest, min(OTHERS, len(rest)))
        found.append((*([fact.target_true] if fact.target_true else []), *chosen))
    return found


def prompts_of(facts: Sequence[Fact], others: Sequence[Sequence[str]]) -> list[tuple[str, str, TargetPrefix]]:
    """Prompts of the facts, an answer that is scored after each, and what joins them, in the order of `read_facts`."""
    pairs: list[tuple[str, str, TargetPrefix]] = []
    for fact, rest in zip(facts, others, strict=True):
        own = [(fact.text, answer) for answer in (fact.target_new, *rest)]
        own += [(text, fact.target_new) for text in fact.paraphrases[:PARAPHRASES]]
        own += _neighbours(fact)
        pairs += [(text, answer, fact.prefix_of(text, answer)) for text, answer in own]
    return pairs


def _neighbours(fact: Fact) -> list[tuple[str, str]]:
    """Neighbours that have answers of their own, with the usual one."""
    return [(q.prompt, q.answers[0]) for q in fact.neighbours if q.answers][:NEIGHBOURS]


def read_facts(lm: LM, facts: Sequence[Fact], others: Sequence[Sequence[str]]) -> list[FactReading]:
    """Read all facts in shared batches."""
    scores = iter(force(lm, prompts_of(facts, others)))
    found = []
    for fact, rest in zip(facts, others, strict=True):
        new = next(scores)
        against = [next(scores) for _ in rest]
        again = [next(scores) for _ in fact.paraphrases[:PARAPHRASES]]
        near = [next(scores) for _ in _neighbours(fact)]
        beaten = [1.0 if new.nll < other.nll else 0.5 if new.nll == other.nll else 0.0 for other in against]
        found.append(FactReading(-new.nll, new.is_argmax, _mean(beaten), _said(again), _said(near)))
    return found


def _said(scores: Sequence[Forced]) -> float:
    return _mean([float(s.is_argmax) for s in scores])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
