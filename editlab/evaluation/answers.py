"""Comparing what a model says with what it should say, as text.

Normalisation follows SQuAD's scorer as far as it is about form: letter case, accents, punctuation and white space do
not count. Words do, so "Niger" is not found in "Nigeria".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import accumulate

# Where a free answer ends of itself (WILD, arXiv 2502.11177): a full stop, or a new line. The stop of an initial or of
# two letters, as in "D.C." and "St. Louis", is none.
_STOP = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])\.|\n")


def normalised(text: str) -> str:
    """Lower case, without accents and punctuation, single spaces; scripts without spaces become one word a sign."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(_kept(c) for c in decomposed if not unicodedata.combining(c)).split())


def _kept(c: str) -> str:
    if c.isascii():
        return c if c.isalnum() else " "
    if unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA")):
        return f" {c} "
    # Letters, numbers and the vowel signs of Indic scripts.
    return c if unicodedata.category(c)[0] in "LNM" else " "


def first_sentence(answer: str) -> str:
    """The answer up to its natural end."""
    return _STOP.split(answer.strip(), maxsplit=1)[0].strip()


def is_exactly(answer: str, accepted: Iterable[str]) -> bool:
    """The answer is one of these and nothing else, up to a full stop in its first line or the line's end.

    Not only up to the first full stop, because an accepted text may hold some itself.
    """
    ends = accumulate(answer.strip().split("\n")[0].split("."), "{}.{}".format)
    return not {normalised(a) for a in accepted}.isdisjoint({normalised(end) for end in ends} - {""})


def position(answer: str, target: str) -> int | None:
    """Where the target's words first stand in the answer, counted in words; None if they do not."""
    words, wanted = normalised(answer).split(), normalised(target).split()
    if not wanted:
        return None
    return next((i for i in range(len(words)) if words[i : i + len(wanted)] == wanted), None)


def begins(answer: str, target: str) -> bool:
    """The answer begins with the target, as whole words."""
    return position(answer, target) == 0


def prefers(answer: str, new: str, old: str | None) -> bool:
    """The answer holds the new target, and the old one not at all."""
    return position(answer, new) is not None and (old is None or position(answer, old) is None)
