"""Paraphrases and neighbours for a fact that comes without any; always shown as suggested.

They are for looking, not for scoring: a paraphrase only puts words in front of the prompt, and a neighbour is the
same question about another country where the subject is one, else a few questions on something else.
"""

from __future__ import annotations

from editlab.data.factbook import capitals
from editlab.facts import Fact, Question

_LEADS = ("It is well known that {}", "Here is what the book says: {}")
WELL_KNOWN = ("France", "Italy", "Japan", "Germany", "Spain", "Russia", "Egypt", "Greece", "Cuba", "Peru")
_ELSEWHERE = (
    "The capital of Japan is",
    "The opposite of hot is",
    "Water is made of hydrogen and",
    "The first president of the United States was",
)


def with_suggestions(fact: Fact) -> tuple[Fact, bool, bool]:
    """The fact with paraphrases and neighbours, and whether each of the two was suggested."""
    no_paraphrases, no_neighbours = not fact.paraphrases, not fact.neighbours
    if no_paraphrases:
        fact = fact.model_copy(update={"paraphrases": tuple(lead.replace("{}", fact.text_within) for lead in _LEADS)})
    if no_neighbours:
        countries = {country for country, _ in capitals()}
        if fact.subject in countries:
            others = [c for c in WELL_KNOWN if c in countries and c != fact.subject][:4]
            prompts = tuple(fact.about(c) for c in others)
        else:
            prompts = _ELSEWHERE
        fact = fact.model_copy(update={"neighbours": tuple(Question(prompt=p) for p in prompts)})
    return fact, no_paraphrases, no_neighbours
