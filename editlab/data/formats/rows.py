"""editlab's own rows: the fields of `Fact`, one fact a row, in JSONL, JSON, CSV or Parquet."""

from __future__ import annotations

from editlab.data.formats.base import Flaw, Layout, Malformed, Note, Row, build
from editlab.errors import short
from editlab.facts import Fact

_NESTED = frozenset(
    {"paraphrases", "neighbours", "locality", "portability", "attributes", "generation_prompts", "tags"}
)


def _matches(row: Row) -> bool:
    return len({"prompt", "subject", "target_new"} & set(row)) >= 2


def _convert(row: Row, note: Note) -> Fact:
    # A field's name may be damaged like any text; pydantic does not say which one is.
    damaged = [Flaw(short(name), "is not valid Unicode text", "Correct the name.") for name in row if _is_damaged(name)]
    if damaged:
        raise Malformed(*damaged)
    return build(Fact, row, row)


def _is_damaged(name: object) -> bool:
    return isinstance(name, str) and any("\ud800" <= c <= "\udfff" for c in name)


LAYOUT = Layout(
    name="rows",
    title="editlab's own rows",
    source="editlab",
    marks=("prompt", "subject", "target_new"),
    nested=_NESTED,
    record=Fact,
    matches=_matches,
    convert=_convert,
    is_general=True,
)
