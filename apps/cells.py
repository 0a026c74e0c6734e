"""The table of a batch as text: facts from its cells, and cells from facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from editlab.data.formats import read_fact
from editlab.errors import RequestError
from editlab.facts import Fact, Question

SEPARATOR = "|"  # between the prompts of one cell
ANSWER = "=>"  # between a neighbour's prompt and the answer that it has of its own
SINGLE = ("subject", "prompt", "target_new", "target_true")
SEVERAL = ("paraphrases", "neighbours")
COLUMNS = (*SINGLE, *SEVERAL)


@dataclass(frozen=True)
class Flawed:
    """A row that is no fact: its number from 1, what is wrong and what to do."""

    row: int
    problem: str
    fix: str


def read_cells(table: pd.DataFrame) -> tuple[list[Fact], list[Flawed]]:
    """The facts of a table, and the rows that are none; rows without any text are passed over."""
    facts, flawed = [], []
    for number, cells in enumerate(table.to_dict("records"), 1):
        row = row_of(cells)
        if not row:
            continue
        missing = [name for name in ("subject", "prompt", "target_new") if name not in row]
        if missing:
            flawed.append(Flawed(number, f"{', '.join(missing)} missing", "Fill it in, or empty the row."))
            continue
        try:
            facts.append(read_fact({"id": f"row {number}", **row}, f"Row {number}"))
        except RequestError as error:
            flawed.append(Flawed(number, error.what, error.fix))
    return facts, flawed


def row_of(cells: Mapping[Any, Any]) -> dict[str, Any]:
    """What is filled in of one row: texts without white space at their ends, and lists of prompts.

    White space in front of a target says what stands between it and the prompt.
    """
    texts = {k: str(v).rstrip() for k, v in cells.items() if k in COLUMNS and not _is_empty(v)}
    row: dict[str, Any] = {name: texts[name] for name in SINGLE if texts.get(name)}
    row |= {name: row[name].strip() for name in ("subject", "prompt") if name in row}
    for name in SEVERAL:
        parts = [part.strip() for part in texts.get(name, "").split(SEPARATOR)]
        if any(parts):
            row[name] = [part for part in parts if part]
    return row | ({"neighbours": [neighbour_of(n) for n in row["neighbours"]]} if "neighbours" in row else {})


def neighbour_of(text: str) -> dict[str, Any]:
    """A neighbour as it is typed: a prompt, and after an arrow its own answer, if that is given."""
    prompt, _, answer = text.partition(ANSWER)
    return {"prompt": prompt.strip(), "answers": [answer.strip()] if answer.strip() else []}


def text_of(neighbour: Question) -> str:
    """A neighbour as it would be typed; of several answers the usual one."""
    return " ".join([neighbour.prompt, *(f"{ANSWER} {answer}" for answer in neighbour.answers[:1])])


def table_of(facts: Sequence[Fact]) -> pd.DataFrame:
    """Facts as a table to edit."""
    rows = [
        {
            **{name: getattr(fact, name) or "" for name in SINGLE},
            "paraphrases": f" {SEPARATOR} ".join(fact.paraphrases),
            "neighbours": f" {SEPARATOR} ".join(text_of(q) for q in fact.neighbours),
        }
        for fact in facts
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype="object")


def _is_empty(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value))
