"""The questions that a fact brings with it, and those that are made for it.

A fact's own prompts (rewrite, paraphrase, neighbour, attribute, locality, portability) are asked as they stand. Three
kinds are made from the rewrite prompt, after the forms of "Is Model Editing Built on Sand?" (arXiv 2510.00625), in our
own wording: what was edited must not be the answer to

1. a negated question ("It is not true that the capital of France is");
2. a question on something else about the same subject ("The number of letters in the name France is");
3. and a statement with the new answer must be judged truer than the same statement with the old one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from editlab.facts import Fact
from editlab.joining import TargetPrefix, is_question

Kind = Literal[
    "rewrite",
    "paraphrase",
    "neighbour",
    "attribute",
    "locality",
    "portability",
    "negated",
    "unrelated",
    "fact_check",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a before-and-after report of an edit shows.
SHOWN: tuple[Kind, ...] = ("rewrite", "paraphrase", "neighbour", "locality")

# The copulas after which "not" negates what follows.
_COPULAS = ("is", "was", "are", "were")
_UNRELATED = (
    "The number of letters in the name {} is",
    "The word {} is spelled with the first letter",
    "{} has nothing to do with sums. Two plus three is",
)


@dataclass(frozen=True)
class Asked:
    """One prompt, and the targets whose probability it is asked for.

    Attributes:
        fact: index of the fact it belongs to.
        targets: text by role: "new" and "true" of the fact, "own" for a question with answers of its own, "yes" and
            "no" for a statement to be judged.
        accepted: every right answer of a question with answers of its own.
        name: what the source calls this kind of question, or which made form it is.
        prefixes: by role, what stands between prompt and target; the rule decides where there is none.
    """

    fact: int
    kind: Kind
    prompt: str
    targets: dict[str, str]
    accepted: tuple[str, ...] = ()
    name: str = ""
    prefixes: dict[str, TargetPrefix] = field(default_factory=dict)


def asked(facts: Sequence[Fact], kinds: Collection[Kind] = KINDS) -> list[Asked]:
    """Every question of these kinds, fact by fact, in a fixed order."""
    return [
        _with_prefixes(question, fact)
        for i, fact in enumerate(facts)
        for question in _of(i, fact)
        if question.kind in kinds
    ]


def _with_prefixes(question: Asked, fact: Fact) -> Asked:
    if question.kind in ("unrelated", "fact_check"):
        return question  # these end in words of ours, which the fact says nothing about
    return replace(question, prefixes={r: fact.prefix_of(question.prompt, t) for r, t in question.targets.items()})


def _of(i: int, fact: Fact) -> Iterator[Asked]:
    targets = {"new": fact.target_new} | ({"true": fact.target_true} if fact.target_true else {})
    yield Asked(i, "rewrite", fact.text, targets)
    of_kind: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("paraphrase", fact.paraphrases),
        ("neighbour", tuple(q.prompt for q in fact.neighbours)),
        ("attribute", fact.attributes),
        ("negated", negated(fact)),
        ("unrelated", tuple(form.replace("{}", fact.subject) for form in _UNRELATED)),
    )
    for kind, prompts in of_kind:
        yield from (Asked(i, kind, prompt, targets) for prompt in prompts)
    for question in fact.locality:
        own = {"own": question.answers[0]} if question.answers else {}
        yield Asked(i, "locality", question.prompt, own, question.answers, question.name)
    for question in fact.portability:
        own = {"own": question.answers[0]} if question.answers else {}
        yield Asked(i, "portability", question.prompt, own, question.answers, question.name)
    for role, target in targets.items():
        said = fact.statement(fact.text, target)
        prompt = f"Statement: {said}. Question: is the statement true or false? Answer: the statement is"
        yield Asked(i, "fact_check", prompt, {"yes": "true", "no": "false"}, name=role)


def negated(fact: Fact) -> tuple[str, ...]:
    """The rewrite prompt turned into its negation: by a lead, and by "not" where the prompt ends in a copula."""
    text = fact.text
    if is_question(text):
        return (f"Give a wrong answer to the question: {text}",)
    forms = [f"It is not true that {fact.text_within}"]
    if text.split()[-1] in _COPULAS:
        forms.append(f"{text} not")
    return tuple(forms)
