"""Texts that an edit has nothing to do with, for methods that learn where not to act.

Half are ordinary prose, half are short prompts about countries in the wordings of the relations. For a given fact there
are also its near neighbours: its own prompt about somebody or something else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from editlab.data.corpus import load_corpus
from editlab.data.relations import fill, relations

if TYPE_CHECKING:
    from editlab.facts import Fact


def pool(n: int, *, seed: int, words: int = 16) -> list[str]:
    """`n` texts, the beginning of prose passages and prompts in turn."""
    rng = random.Random(f"irrelevant {seed}")
    passages = load_corpus().passages
    prose = [" ".join(text.split()[:words]) for text in rng.sample(passages, n - n // 2)]
    asked = [(stem, row.subject) for r in relations().values() for stem in r.stems for row in r.rows]
    prompts = [fill(stem, subject) for stem, subject in rng.sample(asked, n // 2)]
    return prose + prompts


def near(fact: Fact, others: Sequence[str], n: int, *, seed: int) -> list[str]:
    """The fact's prompt about `n` other subjects."""
    rng = random.Random(f"near {seed} {fact.prompt} {fact.subject}")
    chosen = rng.sample([s for s in others if s != fact.subject], n)
    before, after = fact.prompt.split("{}")
    return [before + subject + after for subject in chosen]


def subjects() -> list[str]:
    """Names to put in the place of a subject: countries, capitals, and what else the relations have."""
    found = {row.subject for r in relations().values() for row in r.rows}
    for name in ("capital", "highest_point"):
        found |= {row.answer for row in relations()[name].rows}
    return sorted(found)
