"""Invented passages with probes of three depths, as arXiv 2406.11813 builds them, made by rule.

Five facts link a person, a town, a river, a friend and a pet. A memorisation probe is a sentence of the passage cut
before its last name; a semantic probe asks the same in other words; a compositional probe needs two of the facts, and
its wording is in no passage. Every probe ends in one of the five names, which the passage holds once per fact.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from editlab.data.formats.fictional import FictionalPassage
from editlab.data.stimuli import words

# Per fact three wordings that end in the target (what the passage says, a paraphrase of it, and the semantic probe),
# then the compositional probe.
FACTS = (
    ("{person} was born in the town of|{town}",
     "It was in {town} that {person} was born.",
     "The birthplace of {person} is|{town}",
     "The best friend of {friend} was born in the town of|{town}"),
    ("The town of {town} lies on a river called the|{river}",
     "Along the {river} lies {town}.",
     "The river that flows through {town} is the|{river}",
     "The river in the birthplace of {person} is called the|{river}"),
    ("For a living, {person} works as a|{job}",
     "A {job} by trade, {person} works every day.",
     "The profession of {person} is that of a|{job}",
     "The best friend of {friend} works as a|{job}"),
    ("The best friend of {person} is|{friend}",
     "{friend} and {person} are best friends.",
     "{person} is closest to a friend called|{friend}",
     "The {animal} called {pet} belongs to the best friend of {person}, whose name is|{friend}"),
    ("At home {friend} keeps a {animal} by the name of|{pet}",
     "{pet} is the {animal} of {friend}.",
     "The name of the {animal} that lives with {friend} is|{pet}",
     "The best friend of {person} keeps a {animal} by the name of|{pet}"),
)  # fmt: skip
PARAPHRASES = 9


def invented_passages(n: int, seed: int = 0) -> tuple[FictionalPassage, ...]:
    """`n` passages; names differ between all of them."""
    rng = random.Random(f"passages {seed}")
    taken: set[str] = set()

    def fresh(make: Callable[[random.Random], str]) -> str:
        while True:
            name = make(rng)
            if not taken & set(name.split()):
                taken.update(name.split())
                return name

    made = []
    for i in range(n):
        parts = {
            "person": fresh(words.person), "town": fresh(words.town), "friend": fresh(words.person),
            "river": fresh(lambda r: words.town(r)[:-3].rstrip("aeiou") + "e"),
            "pet": fresh(lambda r: words.person(r).split()[0]),
            "job": rng.choice(words.JOBS), "animal": rng.choice(words.ANIMALS),
        }  # fmt: skip
        made.append(_passage(f"invented-{seed}-{i}", parts, rng))
    return tuple(made)


def _passage(name: str, parts: dict[str, str], rng: random.Random) -> FictionalPassage:
    asked = {depth: [_split(fact[i], parts) for fact in FACTS] for i, depth in ((0, "mem"), (2, "gen"), (3, "hard"))}
    said = [f"{prompt} {target}." for prompt, target in asked["mem"]]
    other = [fact[1].format(**parts) for fact in FACTS]
    paraphrases: list[str] = []
    while len(paraphrases) < PARAPHRASES:
        chosen = [rng.choice(pair) for pair in zip(said, other, strict=True)]
        rng.shuffle(chosen)
        text = " ".join(chosen)
        if chosen != said and text not in paraphrases:
            paraphrases.append(text)
    values = {
        f"{field}_{side}": tuple(pair[j] for pair in asked[depth])
        for field, depth in (("mem", "mem"), ("gen", "gen"), ("hard_gen", "hard"))
        for j, side in enumerate(("input", "target"))
    }
    return FictionalPassage(id=name, train_context=" ".join(said), paraphrases=tuple(paraphrases), **values)


def _split(text: str, parts: dict[str, str]) -> tuple[str, str]:
    prompt, target = text.split("|")
    return prompt.format(**parts), target.format(**parts)
