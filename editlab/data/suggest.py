"""Paraphrases and neighbours for a fact that comes without any; always shown as suggested.

They are for looking, not for scoring: a paraphrase only puts words in front of the prompt, and a neighbour is the
same question about another country where the subject is one, else a few questions on something else.
"""

from __future__ import annotations

import re

from editlab.data.factbook import capitals
from editlab.facts import Fact, Question

# Prompts whose answer is the capital itself, and not something in it.
_ASKS_FOR_CAPITAL = re.compile(r"(the )?capital( city)? of \{\},? (is|was)( called| named)?", re.IGNORECASE)
_LEADS = ("It is well known that {}", "Here is what the book says: {}")
WELL_KNOWN = ("France", "Italy", "Japan", "Germany", "Spain", "Russia", "Egypt", "Greece", "Cuba", "Peru")
_ELSEWHERE = (
    Question(prompt="The capital of Japan is", answers=("Tokyo",)),
    Question(prompt="The opposite of hot is", answers=("cold",)),
    Question(prompt="Water is made of hydrogen and", answers=("oxygen",)),
    Question(prompt="The first president of the United States was", answers=("George Washington", "Washington")),
)


def with_suggestions(fact: Fact) -> tuple[Fact, bool, bool]:
    """The fact with paraphrases and neighbours, and whether each of the two was suggested."""
    no_paraphrases, no_neighbours = not fact.paraphrases, not fact.neighbours
    if no_paraphrases:
        fact = fact.model_copy(update={"paraphrases": tuple(lead.replace("{}", fact.text_within) for lead in _LEADS)})
    if no_neighbours:
        capital_of = dict(capitals())
        prompts: tuple[Question, ...] = _ELSEWHERE
        if fact.subject in capital_of:
            # Where it is not plain that a capital is asked for, what the model says will do.
            asks_for_capital = _ASKS_FOR_CAPITAL.fullmatch(fact.prompt.strip()) is not None
            is_capital = asks_for_capital or fact.target_true == capital_of[fact.subject]
            others = [c for c in WELL_KNOWN if c in capital_of and c != fact.subject][:4]
            prompts = tuple(
                Question(prompt=fact.about(c), answers=(capital_of[c],) if is_capital else ()) for c in others
            )
        fact = fact.model_copy(update={"neighbours": prompts})
    return fact, no_paraphrases, no_neighbours
