"""zsRE in MEND's layout (Levy et al. 2017; Mitchell et al. 2022, arXiv 2110.11309), as `zsre_mend_eval.json` has it."""

from __future__ import annotations

from typing import Any

from editlab.data.formats.base import Layout, Note, Row, fact, first, identity, texts
from editlab.data.formats.places import place_subject
from editlab.data.formats.questions import asked, by_kind, follows
from editlab.facts import Fact
from editlab.joining import is_question, question_mark

_NAMES = {"prompt": "src", "target_new": "alt", "target_true": "answers", "paraphrases": "rephrase"}


def _matches(row: Row) -> bool:
    return "src" in row and "requested_rewrite" not in row


def _convert(row: Row, note: Note) -> Fact:
    prompt, subject = place_subject(row.get("src"), row.get("subject"), "src", note)
    values = {
        "id": identity(row, "case_id", "id"),
        "prompt": prompt,
        "subject": subject,
        "target_new": row.get("alt"),
        "target_true": first(row.get("answers")),
        "paraphrases": texts(row.get("rephrase")),
        "locality": [
            *asked(_as_questions(row.get("loc")), row.get("loc_ans"), "neighborhood", ("loc", "loc_ans"), note),
            *by_kind(row.get("locality"), "locality", note),
        ],
        "portability": follows(row, note),
    }
    return fact(values, row, _NAMES, note)


def _as_questions(loc: Any) -> Any:
    # The authors' code asks loc + "?": the questions are published without their mark. Other files have it.
    if isinstance(loc, list):
        return [_as_questions(item) for item in loc]
    if not isinstance(loc, str) or not loc.strip() or is_question(loc):
        return loc
    return loc.rstrip() + question_mark(loc)


LAYOUT = Layout(
    name="zsre",
    title="zsRE in MEND's layout",
    source="https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
    marks=("src", "alt", "answers", "rephrase", "loc", "loc_ans"),
    nested=frozenset({"answers", "rephrase", "loc", "loc_ans", "portability", "locality"}),
    record=Fact,
    matches=_matches,
    convert=_convert,
)
