"""Where the subject stands in a prompt that spells it out.

The authors' code (kmeng01/memit `dsets/zsre.py`; EasyEdit's engines) replaces every occurrence of the subject by `{}`
and fails in `format` when there are two. Published rows are kept as they are, and one place is chosen by these rules:

1. A place where the subject is a word of its own goes before one inside a longer word ("Iran", not "Iranian").
2. Of several, the last: there the model has read all the others, and it is nearest to the answer.
3. If the subject is nowhere as spelled, letter case, accents, kinds of quotes and dashes, and widths of white space
   are ignored; the prompt's spelling is then the subject, because the prompt is what the model reads.

Rules 2 and 3 are noted. A subject that is not found is an error: nothing can be edited there.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from editlab.data.formats.base import Flaw, Malformed, Note
from editlab.errors import short

_ALIKE = str.maketrans(dict.fromkeys("‘’‚‛`´ʼ′", "'") | dict.fromkeys("“”„‟″", '"') | dict.fromkeys("‐‑‒–—―−", "-"))


def place_subject(prompt: Any, subject: Any, field: str, note: Note) -> tuple[Any, Any]:
    """The prompt with `{}` for the subject, and the subject as the prompt spells it.

    What is no text, or has a placeholder already, is returned as it is, for validation to judge.

    Raises:
        Malformed: the subject does not occur.
    """
    if not isinstance(prompt, str) or not isinstance(subject, str) or not subject.strip() or "{}" in prompt:
        return prompt, subject
    subject = subject.strip()
    spans = [m.span() for m in re.finditer(re.escape(subject), prompt)]
    if not spans:
        spans = _alike(prompt, subject)
        if not spans:
            raise Malformed(
                Flaw(
                    field,
                    f"subject '{short(subject)}' does not occur in the prompt '{short(prompt)}'",
                    "Write {} where it goes, or correct the subject.",
                )
            )
        note("subject", "is spelled differently in the prompt; the prompt's spelling is taken")
    spans = [span for span in spans if _is_word(prompt, *span)] or spans
    if len(spans) > 1:
        note(field, "names the subject several times; the last place is taken")
    start, end = spans[-1]
    return prompt[:start] + "{}" + prompt[end:], prompt[start:end]


def _is_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())


def _alike(prompt: str, subject: str) -> list[tuple[int, int]]:
    plain, origins = _plain(prompt)
    wanted, _ = _plain(subject)
    if not wanted:
        return []
    return [(origins[m.start()], origins[m.end() - 1] + 1) for m in re.finditer(re.escape(wanted), plain)]


def _plain(text: str) -> tuple[str, list[int]]:
    """The text without what does not count, and where each of its characters came from."""
    kept: list[str] = []
    origins: list[int] = []
    for i, char in enumerate(text):
        if char.isspace():
            if not kept or kept[-1] != " ":
                kept.append(" ")
                origins.append(i)
            continue
        for c in unicodedata.normalize("NFKD", char.translate(_ALIKE)).casefold():
            if not unicodedata.combining(c):
                kept.append(c)
                origins.append(i)
    return "".join(kept), origins
