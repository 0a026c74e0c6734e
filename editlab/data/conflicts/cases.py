"""Cases: facts that a context can contradict, from the relations and from files, split by subject.

A case is a subject with the answer that memory should give. What the context asserts instead is drawn among the answers
of other cases, which needs a tokenizer and happens where there is a model (`editlab.probes.conflicts.items`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from editlab.data.factbook import countries, country_name, field
from editlab.data.formats import facts_of, load_records
from editlab.data.relations import relation
from editlab.errors import RequestError
from editlab.facts import Fact
from editlab.joining import TargetPrefix

Split = Literal["discovery", "validation", "test"]
SHARES: dict[Split, float] = {"discovery": 0.3, "validation": 0.2, "test": 0.5}


@dataclass(frozen=True)
class Case:
    """One fact.

    Attributes:
        memory: the answer that the model is expected to give by itself. aliases: others that are as right.
        stem: a prompt of its own, with `{}`; empty where the relation's is used.
        against: what its context asserts, if the file says so; else it is drawn.
        popularity: of the subject, in whatever unit the source has (population for countries); None if unknown.
        target_prefix: what stands between the stem and an answer, where the file says so or the rule cannot tell.
    """

    relation: str
    subject: str
    memory: str
    aliases: tuple[str, ...] = ()
    stem: str = ""
    against: str = ""
    popularity: float | None = None
    target_prefix: TargetPrefix = "auto"


def cases_of_relation(name: str) -> tuple[Case, ...]:
    """Every row of a relation.

    Raises:
        UnknownName: there is no such relation.
    """
    people = _populations()
    return tuple(
        Case(name, row.subject, row.answer, row.aliases, popularity=people.get(row.subject))
        for row in relation(name).rows
    )


def cases_of_file(path: Path, target_prefix: str | None = None) -> tuple[Case, ...]:
    """The facts of a file in any layout: `target_true` is memory's answer, `target_new` what the context asserts.

    One a subject, since subjects are what is split.

    Raises:
        RequestError: the file cannot be read, or no row has a true answer.
    """
    return cases_of_facts(facts_of(load_records(path, target_prefix=target_prefix)), path.name)


def cases_of_facts(facts: Sequence[Fact], source: str = "the list") -> tuple[Case, ...]:
    """The same of facts that were read already.

    Raises:
        RequestError: none has a true answer.
    """
    found: dict[str, Case] = {}
    for fact in facts:
        if fact.target_true and fact.subject not in found:
            found[fact.subject] = Case(
                fact.relation or "file",
                fact.subject,
                fact.target_true,
                stem=fact.prompt,
                against=fact.target_new,
                target_prefix=fact.prefix_of(fact.text, fact.target_true),
            )
    if not found:
        raise RequestError(
            f"No row of '{source}' has a true answer, and without one there is no memory to contradict.",
            "Give each row a target_true.",
        )
    return tuple(found.values())


def split_subjects(subjects: Sequence[str], seed: int) -> dict[str, Split]:
    """Which split each subject is in, so that no subject is both where heads are found and where they are tested."""
    order = sorted(set(subjects))
    random.Random(f"{seed} split").shuffle(order)
    out: dict[str, Split] = {}
    start, share = 0, 0.0
    for name, part in SHARES.items():
        share += part
        stop = round(share * len(order))
        out |= dict.fromkeys(order[start:stop], name)
        start = stop
    return out


@cache
def _populations() -> Mapping[str, float]:
    """Population of the factbook's countries (the package cannot change while we run)."""
    found = {}
    for entry in countries():
        match = re.match(r"[\d,]+", field(entry, "People and Society", "Population", "total"))
        if match:
            found[country_name(entry)] = float(match[0].replace(",", ""))
    return MappingProxyType(found)
