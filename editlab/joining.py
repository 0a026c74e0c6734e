"""What stands between a prompt and its target: a space, nothing, or what the two bring themselves.

The rule looks at the last character c of the prompt and the first character t of the target; the first that fits:

1. The target is written with leading white space, or the prompt ends in white space other than plain spaces: as
   written. (Plain spaces at the end of a prompt never count: the target brings its own.)
2. t closes: Pe, Pf, one of . , ; : ! ? %, a combining mark, or an apostrophe before a letter: nothing. A full stop
   before a letter or digit (".NET", ".com") is unsure.
3. c or t is of a script that is written without spaces, or is CJK punctuation: nothing; unsure where the other one is a
   letter or digit of a script with spaces.
4. c opens: Ps, Pi, one of ¿ ¡ / \\ @ # _, or a straight quote after white space, an opening sign or the beginning:
   nothing. A # that touches a letter ("C#") ends a name.
5. c is a currency sign: a space if it closes a number, otherwise nothing.
6. c is a hyphen or dash: nothing if it touches a letter or digit on its left, otherwise a space.
7. c and t are digits: a space, unsure.
8. Otherwise: a space.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from typing import Literal, NamedTuple

from editlab.errors import UnknownName

TargetPrefix = Literal["auto", "space", "none", "as-written"]
PREFIXES: tuple[TargetPrefix, ...] = ("auto", "space", "none", "as-written")
# Where a resolved prefix comes from: the user, a rule that is sure, a rule that is not, or the model's choice for it.
PrefixBasis = Literal["given", "rule", "unsure", "model"]

# Scripts written without spaces: Han, Hiragana, Katakana, Bopomofo, Yi, Thai, Lao, Khmer, Myanmar, Tibetan, Javanese;
# then CJK punctuation and full-width forms. Hangul is written with spaces.
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3021, 0x3029), (0x3031, 0x3035), (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0xA4CF), (0xA980, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F),
    (0x20000, 0x323AF),
)  # fmt: skip
_CJK_SIGNS = ((0x3000, 0x303F), (0xFE30, 0xFE4F), (0xFF01, 0xFF65), (0xFFE0, 0xFFE6))
_CLOSING = ".,;:!?%"
_OPENING = "¿¡/\\@#_"
_APOSTROPHES = "'’ʼ"


def check_prefix(name: str) -> TargetPrefix:
    """`name` itself.

    Raises:
        UnknownName: there is no such prefix.
    """
    for known in PREFIXES:
        if known == name:
            return known
    raise UnknownName(f"There is no target prefix '{name}'.", f"Use one of {', '.join(PREFIXES)}.")


class Joint(NamedTuple):
    """What stands between: a space or nothing; and whether the rule can tell."""

    between: str
    is_sure: bool = True

    @property
    def prefix(self) -> TargetPrefix:
        """The same as a value of the field `target_prefix`."""
        return "space" if self.between else "none"


def joint(prompt: str, target: str) -> Joint:
    """What the rule puts between a prompt and a target."""
    prompt = prompt.rstrip(" ")
    if not prompt or not target or target[0].isspace() or prompt[-1].isspace():
        return Joint("")
    c, t = prompt[-1], target[0]
    closes = _closes(target)
    if closes is not None:
        return closes
    unspaced = [_is_in(x, _UNSPACED_SCRIPTS) for x in (c, t)]
    if any(unspaced) or _is_in(c, _CJK_SIGNS) or _is_in(t, _CJK_SIGNS):
        meets_spaced = any(x.isalnum() and not is_one for x, is_one in zip((t, c), reversed(unspaced), strict=True))
        return Joint("", is_sure=not (any(unspaced) and meets_spaced))
    before = prompt[:-1]
    if _opens(before, c):
        return Joint("")
    kind = unicodedata.category(c)
    if kind == "Sc":
        amount = before[:-1] if before.endswith(" ") else before
        return Joint(" " if amount[-1:].isdigit() else "")
    if kind == "Pd":
        return Joint("" if before[-1:].isalnum() else " ")
    return Joint(" ", is_sure=not (c.isdigit() and t.isdigit()))


def join(prompt: str, target: str, prefix: TargetPrefix = "auto") -> tuple[str, str]:
    """The prompt that the model is given, and the text that continues it, with all that stands between the two."""
    if prefix == "as-written":
        return prompt, target
    prompt = prompt.rstrip(" ")
    if prefix == "auto":
        return prompt, joint(prompt, target).between + target.rstrip()
    return prompt, f" {target.strip()}" if prefix == "space" else target.rstrip()


def is_question(text: str) -> bool:
    """Whether a text ends in a question mark of any script; closing brackets and quotes may stand behind it."""
    text = text.rstrip()
    while text and unicodedata.category(text[-1]) in ("Pe", "Pf"):
        text = text[:-1]
    if text.endswith(";"):  # Greek's
        return unicodedata.name(text[-2:-1] or " ", "").startswith("GREEK")
    return text[-1:] in set("?？؟\u037e՞⁇⸮︖﹖፧")


def question_mark(text: str) -> str:
    """The question mark that goes behind a text: full-width in a script without spaces."""
    return "？" if text and _is_in(text.rstrip()[-1:] or " ", _UNSPACED_SCRIPTS) else "?"


def _closes(target: str) -> Joint | None:
    t, following = target[0], target[1:2]
    if t == "." and following.isalnum():
        return Joint("", is_sure=False)
    if t in _CLOSING or unicodedata.category(t) in ("Pe", "Pf", "Mn", "Mc", "Me"):
        return Joint("")
    return Joint("") if t in _APOSTROPHES and following.isalpha() else None


def _opens(before: str, c: str) -> bool:
    if c == "#" and before[-1:].isalpha():
        return False
    if c in _OPENING or unicodedata.category(c) in ("Ps", "Pi"):
        return True
    if c not in "\"'":
        return False
    return not before or before[-1].isspace() or _opens(before[:-1], before[-1])


def _is_in(c: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    i = bisect_right(ranges, (ord(c), 0x110000)) - 1
    return i >= 0 and ord(c) <= ranges[i][1]
