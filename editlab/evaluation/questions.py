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

from editlab.evaluation.answers import normalised
from editlab.facts import Fact, Question
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
# Those whose answers must not change.
KEPT: tuple[Kind, ...] = ("neighbour", "locality")

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
            "no" for a statement to be judged. A neighbour has "new" and "own", and "true" if its own answer is that.
        accepted: every right answer of a question with answers of its own. A neighbour without any has the "own"
            target that the unedited model says (see `with_answer`).
        name: what the source calls this kind of question, or which made form it is.
        prefixes: by role, what stands between prompt and target; the rule decides where there is none.
        is_edited: another fact of the same state is written to exactly this prompt.
    """

    fact: int
    kind: Kind
    prompt: str
    targets: dict[str, str]
    accepted: tuple[str, ...] = ()
    name: str = ""
    prefixes: dict[str, TargetPrefix] = field(default_factory=dict)
    is_edited: bool = False

    @property
    def own(self) -> str | None:
        """The answer that the unedited model is expected to give; None where nobody says."""
        return self.targets.get("own", self.targets.get("true"))

    @property
    def is_new(self) -> bool:
        """Its own answer is the new one, so that saying it shows neither success nor damage."""
        own, new = self.targets.get("own", ""), self.targets.get("new", "")
        return own == new if not normalised(own) else normalised(own) == normalised(new)

    def with_answer(self, said: str) -> Asked:
        """The same, with what the unedited model says as its own answer, joined to the prompt as the new one is."""
        prefixes = {**self.prefixes, "own": self.prefixes.get("new", "auto")}
        return replace(self, targets={**self.targets, "own": said}, prefixes=prefixes)


def asked(facts: Sequence[Fact], kinds: Collection[Kind] = KINDS, written: Collection[Fact] = ()) -> list[Asked]:
    """Every question of these kinds, fact by fact, in a fixed order.

    Args:
        written: the facts that are in the model at the same time.
    """
    edited = {fact.text for fact in written}
    return [
        replace(_with_prefixes(question, fact), is_edited=question.kind in KEPT and question.prompt in edited)
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
    yield from (Asked(i, "paraphrase", prompt, targets) for prompt in fact.paraphrases)
    for near in fact.neighbours:
        shared = {"true": targets["true"]} if near.answers[:1] == (fact.target_true,) else {}
        yield _of_question(i, "neighbour", near, {"new": fact.target_new} | shared)
    of_kind: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("attribute", fact.attributes),
        ("negated", negated(fact)),
        ("unrelated", tuple(form.replace("{}", fact.subject) for form in _UNRELATED if fact.has_subject)),
    )
    for kind, prompts in of_kind:
        yield from (Asked(i, kind, prompt, targets) for prompt in prompts)
    yield from (_of_question(i, "locality", question, {}) for question in fact.locality)
    yield from (_of_question(i, "portability", question, {}) for question in fact.portability)
    for role, target in targets.items():
        said = fact.statement(fact.text, target)
        prompt = f"Statement: {said}. Question: is the statement true or false? Answer: the statement is"
        yield Asked(i, "fact_check", prompt, {"yes": "true", "no": "false"}, name=role)


def _of_question(i: int, kind: Kind, question: Question, targets: dict[str, str]) -> Asked:
    own = {"own": question.answers[0]} if question.answers else {}
    return Asked(i, kind, question.prompt, targets | own, question.answers, question.name)


def negated(fact: Fact) -> tuple[str, ...]:
    """The rewrite prompt turned into its negation: by a lead, and by "not" where the prompt ends in a copula."""
    text = fact.text
    if is_question(text):
        return (f"Give a wrong answer to the question: {text}",)
    forms = [f"It is not true that {fact.text_within}"]
    if text.split()[-1] in _COPULAS:
        forms.append(f"{text} not")
    return tuple(forms)
