"""Comparing what a model says with what it should say, as text.

Normalisation follows SQuAD's scorer as far as it is about form: letter case, accents, punctuation and white space do
not count. Words do, so "Niger" is not found in "Nigeria". So do signs that change what is meant: C++ and C# are not C,
.NET is not NET, A- is not A, -5, 50 %, 50 ° and $50 are not 5 and 50, and 3.5 is not 3 5.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# A full stop that is one: no decimal point, and not the first sign of a name (".NET").
_POINT = r"(?:。|\.(?!(?<=\d\.)\d)(?!(?<![^\s(\"'“]\.)\w))"
_FULL_STOP = re.compile(_POINT)
# Where a free answer ends of itself (WILD, arXiv 2502.11177): a full stop, or a new line. The stop of an initial or of
# two letters, as in "D.C." and "St. Louis", is none.
_STOP = re.compile(rf"(?<!\b[A-Z])(?<!\b[A-Z][a-z]){_POINT}|\n")
_CURRENCIES = "".join(c for c in map(chr, range(0x24, 0xAAFF)) if unicodedata.category(c) == "Sc")
# An amount is one word, whichever side its sign stands on: "$50", "$ 50" and "50 $".
_AMOUNT = re.compile(rf"(-?)([{_CURRENCIES}]) ?(-?\d(?:[\d.,]*\d)?)")
_UNIT = re.compile(rf"(\d) ([%‰°{_CURRENCIES}])")
_MINUS = "-\N{MINUS SIGN}"
_AFTER_A_WORD = "+#"
_BEFORE_A_NUMBER = "<>≤≥≠±"

# Where an answer goes on to something else. Marks inside numbers ("1,000", "3:15") are none.
_CLAUSE = re.compile(r"[,;:!?](?!\d)|[()\[\]\u3001\u3002\uff01\uff08\uff0c\uff1a\uff1b\uff1f]|\s[-\u2013\u2014]\s")
_LEADING = re.compile(r"^[\s,;:!?.]+")


def normalised(text: str) -> str:
    """Lower case, without accents and punctuation, single spaces; scripts without spaces become one word a sign.

    A text of nothing but signs is what it is.
    """
    plain = _decomposed(text.casefold().replace("♯", "#"))
    plain = _AMOUNT.sub(r" \1\3\2 ", _UNIT.sub(r"\1\2", " ".join(plain.split())))
    words = " ".join("".join(_kept(plain, i) for i in range(len(plain))).split())
    return words or "".join(plain.split())


def _decomposed(text: str) -> str:
    """Without accents; a sign such as ≠ stays whole."""
    parts = []
    for c in text:
        is_sign = unicodedata.category(c) == "Sm"
        whole = unicodedata.normalize("NFKD", c)
        parts.append(c if is_sign and len(whole) > 1 else whole)
    return "".join(c for c in "".join(parts) if not unicodedata.combining(c))


def _kept(text: str, i: int) -> str:
    """What becomes of the character at `i`."""
    c, before, after = text[i], text[i - 1 : i], text[i + 1 : i + 2]
    kind = unicodedata.category(c)
    if unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA")) and kind[0] == "L":
        return f" {c} "
    if kind[0] in "LNM":  # letters, numbers and the vowel signs of Indic scripts
        return c
    if c in _CURRENCIES:
        return c if before.isdigit() else f" {c} "
    if c in "%‰°":
        return c if before.isdigit() else " "
    if c in _AFTER_A_WORD:
        return c if before.isalnum() or (before and before in _AFTER_A_WORD) else " "
    if c in _BEFORE_A_NUMBER:
        return f" {c} " if text[i + 1 :].lstrip(" ")[:1].isdigit() else " "
    if c == ".":
        is_decimal, begins_a_name = before.isdigit() and after.isdigit(), not before.strip() and after.isalnum()
        return c if is_decimal or begins_a_name else " "
    if c in _MINUS and _is_minus(text, i):
        return "-"
    return " "


def _is_minus(text: str, i: int) -> bool:
    """Of a negative number, or behind a grade, a blood group or an ion: "A-", "Cl-"."""
    if not text[i - 1 : i].isalnum():
        return text[i + 1 : i + 2].isdigit() and text[i - 1 : i] not in (")", "%")
    word = re.search(r"[^\W\d_]+$", text[:i])
    return word is not None and len(word[0]) <= 2 and not text[i + 1 : i + 2].isalnum()


def first_sentence(answer: str) -> str:
    """The answer up to its natural end."""
    return _STOP.split(answer.strip(), maxsplit=1)[0].strip()


def is_exactly(answer: str, accepted: Iterable[str]) -> bool:
    """The answer is one of these and nothing else, up to a full stop in its first line or the line's end.

    Not only up to the first full stop, because an accepted text may hold some itself.
    """
    line = answer.strip().split("\n")[0]
    ends = {line, *(line[: stop.start()] for stop in _FULL_STOP.finditer(line))}
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


def said_first(answer: str) -> str:
    """What an answer says before it goes on: up to its natural end, a comma or another mark between clauses."""
    return _CLAUSE.split(first_sentence(_LEADING.sub("", answer)), maxsplit=1)[0].strip()


def is_kept(before: str, after: str, accepted: Iterable[str] = ()) -> bool:
    """The answer is still the one that was given before, by the rule that decides whether an edit fires (`begins`).

    Args:
        accepted: right answers; if `before` is one of them, any of them will do.
    """
    accepted = tuple(accepted)
    first = said_first(before)
    right = accepted if any(begins(before, a) for a in accepted) else (first,)
    if not normalised(first):  # nothing was said that a word could stand for
        return normalised(first_sentence(before)) == normalised(first_sentence(after))
    return any(begins(after, a) for a in right)


def are_alike(one: str, other: str) -> bool:
    """An answer that begins with one of them may pass for the other."""
    return begins(one, other) or begins(other, one)


def prefers(answer: str, new: str, old: str | None) -> bool:
    """The answer holds the new target, and the old one not at all."""
    return position(answer, new) is not None and (old is None or position(answer, old) is None)
