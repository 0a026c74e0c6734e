"""Relations between countries and things: capital, official language, currency, and others, each with many phrasings.

The rows come from the factbook by the rules of `rules.py`, the phrasings from `phrasings.yaml`; `README.md` says
what is left out and how often. Everything here is a function of the two, so it is the same on every machine.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml

from editlab.data.relations.rules import rows_of
from editlab.errors import ConfigError, UnknownName, did_you_mean
from editlab.facts import Fact, Question

# Names that English writes with "the"; the others stand alone.
_WITH_ARTICLE = re.compile(
    r"^(United|Republic of|Democratic Republic of|Federated States|Central African)\b|(Islands|Republic)$"
    r"|^(Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|Seychelles)$"
)

# What is asked, and whether the answers are a few classes that many subjects share.
_KINDS = {
    "capital": ("capital", False),
    "language": ("official language", True),
    "currency": ("currency", True),
    "continent": ("continent", True),
    "nationality": ("nationality", False),
    "internet_code": ("two-letter internet code", False),
    "highest_point": ("highest point", False),
}


@dataclass(frozen=True)
class RelationRow:
    """One subject with its one answer.

    Attributes:
        aliases: other answers that are as right.
    """

    subject: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """One relation.

    Attributes:
        name: an identifier. title: the words for it.
        trained: phrasings, each with one `{}` for the subject and ending where the answer begins; the fact worlds
            are trained on these. held_out: phrasings that they never see.
        rows: by subject.
        is_closed: whether the answers are a few classes, so that a guess by class is often right.
        excluded: how many of the 195 countries each rule leaves out.
    """

    name: str
    title: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    rows: tuple[RelationRow, ...]
    is_closed: bool
    excluded: Mapping[str, int] = field(hash=False)

    @property
    def stems(self) -> tuple[str, ...]:
        """All phrasings, the trained ones first."""
        return self.trained + self.held_out

    def row(self, subject: str) -> RelationRow:
        """The row of a subject.

        Raises:
            UnknownName: the relation has no clean answer for it.
        """
        found = {row.subject: row for row in self.rows}
        if subject not in found:
            raise UnknownName(
                f"The relation '{self.name}' has no row for '{subject}'.", did_you_mean(subject, list(found))
            )
        return found[subject]

    def facts(
        self,
        *,
        stem: str | None = None,
        seed: int = 0,
        paraphrases: int = 4,
        neighbours: int = 5,
        among: Collection[str] | None = None,
        limit: int | None = None,
    ) -> tuple[Fact, ...]:
        """One counterfactual per row, in the order of the rows.

        The new target is another row's answer that begins with another word. Paraphrases are the first other
        phrasings, the held-out ones first. Neighbours ask the same of other subjects, each with its own answers, none
        of which is the new target: first subjects that no fact is about, so that a batch of all facts leaves them
        alone, then subjects with the same true answer, then any.

        Args:
            stem: the prompt; default the first trained phrasing.
            seed: of the new targets and the choice of neighbours.
            paraphrases, neighbours: at most so many of each.
            among: subjects of which facts and neighbours are made; default all.
            limit: facts, at most.

        Raises:
            ConfigError: the stem has no single `{}`.
        """
        stem = self.trained[0] if stem is None else stem
        if stem.count("{}") != 1:
            raise ConfigError(f"A stem needs exactly one {{}} for the subject: '{stem}'.")
        rng = random.Random(f"{seed} {self.name}")
        answers = sorted({row.answer for row in self.rows})
        sharing: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            sharing[row.answer].append(row.subject)
        others = [text for text in (*self.held_out, *self.trained) if text != stem][:paraphrases]
        usable = [row for row in self.rows if among is None or row.subject in among]
        written = {row.subject for row in usable[:limit]}
        facts = []
        for row in self.rows:
            taken = _first_words(row)
            same = [subject for subject in sharing[row.answer] if subject != row.subject]
            target = rng.choice([a for a in answers if _first_word(a) not in taken])
            # Drawn for every row, so that a fact is the same whatever other facts are made.
            alike = rng.sample(same, min(neighbours, len(same)))
            if row.subject not in written:
                continue
            near = [r for r in usable if r is not row and _first_word(target) not in _first_words(r)]
            random.Random(f"{seed} {self.name} {row.subject}").shuffle(near)
            near.sort(key=lambda r: (r.subject in written, r.subject not in alike, r.answer != row.answer))
            facts.append(
                Fact(
                    id=f"{self.name}/{row.subject}",
                    prompt=place(stem, row.subject),
                    subject=row.subject,
                    target_new=target,
                    target_true=row.answer,
                    paraphrases=tuple(fill(text, row.subject) for text in others),
                    neighbours=tuple(
                        Question(prompt=fill(stem, r.subject), answers=(r.answer, *r.aliases))
                        for r in near[:neighbours]
                    ),
                    relation=self.name,
                )
            )
        return tuple(facts)


@cache
def relations() -> Mapping[str, Relation]:
    """All relations by name (the factbook and the phrasings cannot change while we run)."""
    phrasings = yaml.safe_load((files(__package__) / "phrasings.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, (title, is_closed) in _KINDS.items():
        answers, excluded = rows_of(name)
        rows = tuple(RelationRow(s, a.text, a.aliases) for s, a in sorted(answers.items()))
        texts = phrasings[name]
        found[name] = Relation(
            name, title, tuple(texts["trained"]), tuple(texts["held_out"]), rows, is_closed, MappingProxyType(excluded)
        )
    return MappingProxyType(found)


def relation(name: str) -> Relation:
    """The relation called `name`.

    Raises:
        UnknownName: there is none.
    """
    known = relations()
    if name not in known:
        raise UnknownName(f"There is no relation '{name}'.", did_you_mean(name, list(known)))
    return known[name]


def place(stem: str, subject: str) -> str:
    """The stem with the article that the subject needs, its `{}` still in place: "The capital of the {} is"."""
    if not _WITH_ARTICLE.search(subject):
        return stem
    before, after = stem.split("{}")
    article = "The " if not before or before.endswith(": ") else "the "
    return f"{before}{article}{{}}{after}"


def fill(stem: str, subject: str) -> str:
    """The stem as running text about the subject: "The capital of the Bahamas is"."""
    before, after = place(stem, subject).split("{}")
    return before + subject + after


def _first_word(answer: str) -> str:
    return answer.split()[0].casefold()


def _first_words(row: RelationRow) -> set[str]:
    """The words that the row's answers begin with; an answer that begins with one of them is not told apart."""
    return {_first_word(answer) for answer in (row.answer, *row.aliases)}
