"""Facts that are written at one place: the same subject after the same words has the same key, whatever follows it.

With other targets, or other words after the subject, two such facts are two values for one key. Then

- a fact that is given twice is written once;
- where the constraint is soft, or the targets agree, one joint value is optimised over the prompts of all of them
  (MEMIT-Merge, arXiv 2502.07322), which lies between the targets where they differ;
- where it is hard and the targets differ, there is no solution: those facts fail, and the others are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from editlab.edits.targets import Form
from editlab.errors import RequestError
from editlab.facts import Fact

SAME_KEY = 0.9999  # cosine above which two facts cannot be told apart where they are written
_BLOCK = 1024  # keys that are compared with all others at once


@dataclass(frozen=True)
class Places:
    """Forms with one for each place, and what became of facts that share theirs.

    Attributes:
        forms: what to write. facts: those that are written, copies included.
        failed: rows that cannot be written: their number, name, and why. warnings: sentences.
    """

    forms: list[Form]
    facts: list[Fact]
    failed: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def distinct(facts: Sequence[Fact]) -> tuple[list[Fact], dict[int, int]]:
    """The facts without those that are given twice, and which row each copy is a copy of."""
    first: dict[tuple[Any, ...], int] = {}
    copies: dict[int, int] = {}
    for number, fact in enumerate(facts):
        written = fact.model_dump(include={"prompt", "subject", "target_new", "target_prefix"})
        seen = first.setdefault(tuple(written.items()), number)
        if seen != number:
            copies[number] = seen
    return [fact for number, fact in enumerate(facts) if number not in copies], copies


def by_place(
    facts: Sequence[Fact], copies: dict[int, int], forms: Sequence[Form], is_hard: Callable[[], bool]
) -> Places:
    """One form for each place.

    Args:
        facts: all rows. copies: from `distinct`. forms: of the rows that are no copies.
        is_hard: whether the constraint is an equality; asked where it matters.

    Raises:
        RequestError: no row can be written.
    """
    numbers: dict[int, int] = {}
    for number, fact in enumerate(facts):
        numbers.setdefault(id(fact), number)  # one object may be given twice
    groups = _groups(forms)
    must_agree = bool(groups) and is_hard()
    shared: list[tuple[int, ...]] = []  # rows that get one value
    apart: list[tuple[int, ...]] = []  # rows that cannot
    for group in groups:
        rows = tuple(sorted({numbers[id(forms[i].fact)] for i in group}))
        is_one = len({(facts[row].target_new, facts[row].target_prefix) for row in rows}) == 1
        (apart if must_agree and not is_one else shared).append(rows)
    lost = {row: rows for rows in apart for row in rows}
    lost |= {copy: lost[row] for copy, row in copies.items() if row in lost}
    failed = [
        {
            "row": row,
            "fact": _name(facts, row),
            "reason": f"{_told(facts, lost[row])} ask for different answers at one place in the model: they share the "
            "subject and what stands before it.",
        }
        for row in sorted(lost)
    ]
    if len(failed) == len(facts):
        raise RequestError(str(failed[0]["reason"]), "Leave one out, or edit them one after the other.")
    warnings = []
    if copies:
        told = "; ".join(f"{_name(facts, copy)} is {_name(facts, row)}" for copy, row in copies.items())
        what = "1 fact is" if len(copies) == 1 else f"{len(copies)} facts are"
        warnings.append(f"{what} given twice and written once: {told}")
    if shared := list(dict.fromkeys(shared)):
        told = "; ".join(_told(facts, rows) for rows in shared)
        what = "1 place in the model has" if len(shared) == 1 else f"{len(shared)} places in the model have"
        warnings.append(
            f"{what} several facts (the same subject after the same words). They get one joint value, which lies "
            f"between their answers where these differ: {told}"
        )
    if failed:
        told = "; ".join(_told(facts, rows) for rows in dict.fromkeys(apart))
        what = "1 fact was" if len(failed) == 1 else f"{len(failed)} facts were"
        warnings.append(f"{what} not written, since others ask for another answer there: {told}")
    one_of = {i: group for group in groups for i in group}
    written: list[Form] = []
    for i, form in enumerate(forms):
        group = [j for j in one_of.get(i, [i]) if numbers[id(forms[j].fact)] not in lost]
        if group and group[0] == i:
            written.append(_joined([forms[j] for j in group]) if len(group) > 1 else form)
    return Places(written, [fact for row, fact in enumerate(facts) if row not in lost], failed, warnings)


def _groups(forms: Sequence[Form]) -> list[list[int]]:
    """Forms of different facts that have one key, in groups of two and more."""
    keys = torch.nn.functional.normalize(torch.stack([form.key for form in forms]), dim=1)
    root = list(range(len(forms)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for start in range(0, len(keys), _BLOCK):
        close = (keys[start : start + _BLOCK] @ keys.T > SAME_KEY).nonzero().tolist()
        for i, j in close:
            if start + i < j and forms[start + i].fact is not forms[j].fact:
                a, b = sorted((find(start + i), find(j)))
                root[b] = a
    groups: dict[int, list[int]] = {}
    for i in range(len(forms)):
        groups.setdefault(find(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _joined(forms: Sequence[Form]) -> Form:
    """One form with the rows of all of them."""
    n = len(forms)
    return replace(
        forms[0],
        rows=tuple(row for form in forms for row in form.rows),
        weights=torch.cat([form.weights for form in forms]) / n,
        key=torch.stack([form.key for form in forms]).mean(0),
        value=torch.stack([form.value for form in forms]).mean(0),
        canonical_keys=torch.cat([form.canonical_keys for form in forms]),
    )


def _name(facts: Sequence[Fact], row: int) -> str:
    """A row as the file calls it, or by its number from 0."""
    return f"'{facts[row].id}'" if facts[row].id else f"request {row}"


def _told(facts: Sequence[Fact], rows: Sequence[int]) -> str:
    return " and ".join(f"{_name(facts, row)} ('{facts[row].text}': '{facts[row].target_new}')" for row in rows)
