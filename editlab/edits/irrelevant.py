"""Texts that an edit has nothing to do with, for methods that learn where not to act.

Half are ordinary prose, half are short prompts about some name in the wordings of the relations. For a given fact there
are also its near neighbours: its own prompt about somebody or something else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from faker import Faker

from editlab.data.corpus import load_corpus
from editlab.data.relations import fill, relations
from editlab.errors import ConfigError

if TYPE_CHECKING:
    from editlab.facts import Fact

MADE_UP = 150  # people, companies and places each


def drawn(rng: random.Random, texts: Sequence[str], n: int, what: str) -> list[str]:
    """`n` of the texts.

    Raises:
        ConfigError: there are not so many.
    """
    if n > len(texts):
        raise ConfigError(f"{n:,} {what} are asked for, and there are {len(texts):,}.", "Ask for fewer.")
    return rng.sample(texts, n)


@cache
def pool(n: int, *, seed: int, words: int = 16) -> tuple[str, ...]:
    """`n` texts, the beginning of prose passages and prompts in turn."""
    rng = random.Random(f"irrelevant {seed}")
    passages = load_corpus().passages
    prose = [" ".join(text.split()[:words]) for text in drawn(rng, passages, n - n // 2, "passages of prose")]
    stems = [stem for r in relations().values() for stem in r.stems]
    return (*prose, *(fill(rng.choice(stems), rng.choice(subjects())) for _ in range(n // 2)))


def near(fact: Fact, others: Sequence[str], n: int, *, seed: int) -> list[str]:
    """The fact's prompt about `n` other subjects; none of a fact without a subject."""
    if not fact.has_subject:
        return []
    rng = random.Random(f"near {seed} {fact.prompt} {fact.subject}")
    return [fact.about(s) for s in drawn(rng, [s for s in others if s != fact.subject], n, "other subjects")]


@cache
def subjects() -> tuple[str, ...]:
    """Names to put in the place of a subject: countries and cities, and made-up people, companies and places."""
    made = Faker("en_US")
    made.seed_instance(0)
    names = {make() for make in (made.name, made.company, made.city) for _ in range(MADE_UP)}
    rows = relations()["capital"].rows
    return tuple(sorted(names | {row.subject for row in rows} | {row.answer for row in rows}))
