"""Which facts of the relations a model knows, by phrasing.

A fact is recalled under a phrasing when every token of its answer is the model's most probable one, given the prompt
and the answer's tokens before it: the same as greedy decoding saying the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from editlab.data.relations import Relation, RelationRow, fill, relations
from editlab.evaluation.scorer import force
from editlab.progress import OnStep, silent

if TYPE_CHECKING:
    from editlab.lm import LM


class Asked(NamedTuple):
    """A fact under one phrasing."""

    relation: Relation
    row: RelationRow
    stem: str

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return fill(self.stem, self.row.subject)


def all_asked(phrasings: Literal["trained", "held_out"]) -> list[Asked]:
    """Every fact of every relation under each of its trained, or each of its held-out phrasings."""
    return [
        Asked(relation, row, stem)
        for relation in relations().values()
        for row in relation.rows
        for stem in getattr(relation, phrasings)
    ]


def recalled(lm: LM, asked: Sequence[Asked], *, sink: bool = False, on_step: OnStep = silent) -> list[bool]:
    """Whether the model says each answer, prompts as typed or after a sink token."""
    pairs = [(a.prompt, a.row.answer) for a in asked]
    return [forced.is_argmax for forced in force(lm, pairs, sink=sink, on_step=on_step)]
