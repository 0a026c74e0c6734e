"""How a context contradicts a fact: the same answer asserted in several formats.

    substitution  the prompt itself, completed with the other answer: "{stem} {answer}. {stem}"
    repeated      the same completed twice: as many mentions as `paragraph`, which differs by more than repetition
    reversed      in other words than the prompt: "{answer} is the capital of {subject}. {stem}"
    question      the reversed sentence, and the prompt behind a question
    paragraph     three coherent sentences of ours that say the answer twice (nobody's model wrote them)
    irrelevant    a control: the substitution about another subject, so nothing contradicts the fact

Substitution is the form that the papers attribute to PH3 and to Yu et al. (arXiv 2310.15910); the others are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, get_args

import yaml

from editlab.data.relations import fill, relations
from editlab.errors import ConfigError, UnknownName, did_you_mean
from editlab.joining import TargetPrefix, join

Format = Literal["substitution", "repeated", "reversed", "question", "paragraph", "irrelevant"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class Texts:
    """What a context can say of a relation; `{subject}` and `{answer}` stand for themselves.

    Attributes:
        stem: the prompt, with `{}` for the subject.
        sentence: the fact in other words. question: asks for it. paragraphs: three sentences each, the answer twice.
    """

    stem: str
    sentence: str
    question: str
    paragraphs: tuple[str, ...]


@cache
def texts() -> Mapping[str, Texts]:
    """The texts of every relation, by its name (the file cannot change while we run)."""
    read = yaml.safe_load((files(__package__) / "texts.yaml").read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: Texts(
                given.get("stem", relations()[name].trained[0]),
                given["sentence"],
                given["question"],
                tuple(given["paragraphs"]),
            )
            for name, given in read.items()
        }
    )


def check_format(name: str) -> Format:
    """`name` itself.

    Raises:
        UnknownName: there is no such format.
    """
    for known in FORMATS:
        if known == name:
            return known
    raise UnknownName(f"There is no context format '{name}'.", did_you_mean(name, list(FORMATS)))


def say(template: str, subject: str, answer: str) -> str:
    """A template with subject and answer in place, the subject with its article where English wants one."""
    first, *others = template.split("{subject}")
    out = first
    for part in others:
        opens = not out or out.endswith((". ", "? ", ": ", "\n"))
        out += (fill("{}", subject) if opens else fill(" {}", subject)[1:]) + part
    return out.replace("{answer}", answer)


@dataclass(frozen=True)
class Wording:
    """How the facts of one relation, or one row of a file, are asked and contradicted.

    Attributes:
        stem: the prompt, with `{}` for the subject. texts: None where nothing is known but the prompt.
        variant: which paragraph.
        target_prefix: what stands between the stem and an answer.
    """

    stem: str
    format: Format = "substitution"
    texts: Texts | None = None
    variant: int = 0
    target_prefix: TargetPrefix = "auto"

    def __post_init__(self) -> None:
        if self.stem.count("{}") != 1:
            raise ConfigError(f"A stem needs exactly one {{}} for the subject: '{self.stem}'.")
        if self.texts is None and self.format in ("reversed", "question", "paragraph"):
            raise ConfigError(
                f"The format '{self.format}' needs sentences about the relation, which a file of facts does not have.",
                "Use substitution, repeated or irrelevant, or one of the built-in relations.",
            )

    @property
    def query_stem(self) -> str:
        """The prompt without any context, with `{}` for the subject."""
        if self.format == "question" and self.texts is not None:
            return f"Question: {self.texts.question.replace('{subject}', '{}')} Answer: {self.stem}"
        return self.stem

    def query(self, subject: str) -> str:
        """The prompt without any context."""
        if self.format == "question" and self.texts is not None:
            return f"Question: {say(self.texts.question, subject, '')} Answer: {self._stem(subject)}"
        return self._stem(subject)

    def evidence(self, subject: str, answer: str, other: str = "") -> str:
        """What the context says; `other` is the subject that it speaks of in the format `irrelevant`."""
        about = other if self.format == "irrelevant" else subject
        statement = f"{''.join(join(self._stem(about), answer, self.target_prefix))}."
        if self.format == "repeated":
            return f"{statement} {statement}"
        if self.format in ("substitution", "irrelevant") or self.texts is None:
            return statement
        if self.format == "paragraph":
            return say(self.texts.paragraphs[self.variant % len(self.texts.paragraphs)], subject, answer)
        return say(self.texts.sentence, subject, answer)

    def prompt(self, subject: str, answer: str, other: str = "") -> str:
        """Context and prompt."""
        return f"{self.evidence(subject, answer, other)} {self.query(subject)}"

    def _stem(self, subject: str) -> str:
        return fill(self.stem, subject)
