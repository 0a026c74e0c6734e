"""Which facts of a relation a model knows, so that an edit or a probe has something to change.

A fact counts as known under a stem if

1. every token of its answer is the most probable one, given the prompt and the answer's tokens before it: greedy
   decoding says the answer;
2. and, for a relation whose answers are a few classes, the answer is at least twice as probable (per token) as after
   the same stem about "this country". Otherwise a guess by class passes for memory.

One batched pass per model and stem; the outcome is kept in the user's cache, keyed by weights, tokenizer, stem and
rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editlab.data.relations import Relation, RelationRow, fill
from editlab.errors import ConfigError
from editlab.evaluation.scorer import force
from editlab.facts import Fact
from editlab.progress import OnStep, silent
from editlab.state.files import cached_json

if TYPE_CHECKING:
    from editlab.lm import LM

NOBODY = "this country"
FACTOR = 2.0
RULES = 2  # raise when the rules above change, so that old outcomes are not reused


@dataclass(frozen=True)
class Known:
    """The outcome for one relation under one stem.

    Attributes:
        rows: what the model knows, in the relation's order.
        not_said: rows whose answer is not the model's. guessed: rows that it says, but no more than of any country.
    """

    relation: Relation
    stem: str
    rows: tuple[RelationRow, ...]
    not_said: int
    guessed: int

    def facts(
        self, *, seed: int = 0, paraphrases: int = 4, neighbours: int = 5, limit: int | None = None
    ) -> tuple[Fact, ...]:
        """Counterfactuals of the known rows, with neighbours that are known too; see `Relation.facts`."""
        return self.relation.facts(
            stem=self.stem,
            seed=seed,
            paraphrases=paraphrases,
            neighbours=neighbours,
            among={row.subject for row in self.rows},
            limit=limit,
        )


def known(lm: LM, relation: Relation, stem: str | None = None, *, on_step: OnStep = silent) -> Known:
    """The rows of `relation` that `lm` knows under `stem` (default: the relation's first).

    Raises:
        ConfigError: the stem has no single `{}`.
    """
    stem = relation.stems[0] if stem is None else stem
    if stem.count("{}") != 1:
        raise ConfigError(f"A stem needs exactly one {{}} for the subject: '{stem}'.")
    rows = relation.rows
    key = [RULES, lm.state_hash, lm.tokenizer_hash, relation.is_closed, stem, [(r.subject, r.answer) for r in rows]]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    verdicts: list[str] = cached_json("known", digest, lambda: _verdicts(lm, relation, stem, on_step))
    return Known(
        relation,
        stem,
        tuple(row for row, verdict in zip(rows, verdicts, strict=True) if verdict == "known"),
        verdicts.count("not said"),
        verdicts.count("guessed"),
    )


def preferred(lm: LM, facts: Sequence[Fact], *, on_step: OnStep = silent) -> list[Fact]:
    """The facts whose true target the model finds more probable than the new one (per token), one a subject.

    CounterFact's own notion of an edit that has something to do; weaker than `known`.
    """
    asked = list({fact.subject: fact for fact in facts if fact.target_true}.values())
    new, true = (
        force(lm, [(f.text, t, f.prefix_of(f.text, t)) for f, t in zip(asked, targets, strict=True)], on_step=on_step)
        for targets in ([f.target_new for f in asked], [str(f.target_true) for f in asked])
    )
    return [f for f, a, b in zip(asked, new, true, strict=True) if b.nll < a.nll]


def _verdicts(lm: LM, relation: Relation, stem: str, on_step: OnStep) -> list[str]:
    said = force(lm, [(fill(stem, row.subject), row.answer) for row in relation.rows], on_step=on_step)
    answers: Sequence[str] = sorted({row.answer for row in relation.rows}) if relation.is_closed else ()
    nobody = {
        answer: forced.nll
        for answer, forced in zip(answers, force(lm, [(fill(stem, NOBODY), a) for a in answers]), strict=True)
    }
    out = []
    for row, forced in zip(relation.rows, said, strict=True):
        if not forced.is_argmax:
            out.append("not said")
        elif row.answer in nobody and forced.nll > nobody[row.answer] - math.log(FACTOR):
            out.append("guessed")
        else:
            out.append("known")
    return out
