"""A fact's prompt in other words, for methods that train on how else it may be asked; its paraphrases are not used.

Three kinds, all by seed: a sentence of ordinary prose in front, words left out around the subject, and openings that
name the subject and leave the relation open. The last make an answer carry over to questions that are worded quite
differently, and to other questions about the subject too.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

from editlab.data.corpus import load_corpus
from editlab.edits.irrelevant import drawn

if TYPE_CHECKING:
    from editlab.facts import Fact

WORDS = (5, 9)  # of a sentence in front
OPENINGS = (
    "{}",
    "{} is",
    "{} was",
    "{} has",
    "{}, the",
    "{}'s",
    "About {}:",
    "{} is known for",
    "{} is associated with",
    "What is said of {} is that",
    "The story of {} begins with",
    "When it comes to {}, there is",
    "As for {}, it is",
    "In the case of {}, this means",
)


@cache
def sentences() -> tuple[str, ...]:
    """Sentences of the packaged prose, short ones, without their full stop."""
    found = (s.strip().rstrip(".") for text in load_corpus().passages for s in text.split(". "))
    return tuple(sorted({s for s in found if WORDS[0] <= len(s.split()) <= WORDS[1]}))


def behind_prose(fact: Fact, n: int, *, seed: int) -> list[str]:
    """`n` sentences to put in front of the prompt."""
    return drawn(_random("prose", fact, seed), sentences(), n, "sentences of prose")


def with_words_left_out(fact: Fact, n: int, *, seed: int) -> list[Fact]:
    """`n` copies in which every word of the prompt is there or not by the toss of a coin; the subject always is.

    None of a fact without a subject, of which nothing would have to stay.
    """
    if not fact.has_subject:
        return []
    rng = _random("words", fact, seed)
    made = []
    for _ in range(n):
        kept = [word for word in fact.prompt.split() if "{}" in word or rng.random() < 0.5]
        made.append(fact.with_prompt(" ".join(kept)))
    return made


def with_other_openings(fact: Fact, n: int, *, seed: int) -> list[Fact]:
    """`n` copies that only name the subject, at most one of each opening."""
    if not fact.has_subject:
        return []
    chosen = _random("openings", fact, seed).sample(OPENINGS, min(n, len(OPENINGS)))
    return [fact.with_prompt(opening) for opening in chosen]


def _random(kind: str, fact: Fact, seed: int) -> random.Random:
    return random.Random(f"{kind} {seed} {fact.prompt} {fact.subject}")
