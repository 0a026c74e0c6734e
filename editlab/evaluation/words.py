"""Words as NLTK's `word_tokenize` gives them, without the data that it downloads.

`nltk.word_tokenize` cuts a text into sentences with Punkt, a trained model, and every sentence into words with the
rules of the Penn Treebank. The rules are code, and are NLTK's here; Punkt's model is a download, so the sentences are
cut by rules of our own. The words are the same but around full stops within a text: a stop stays with the word before
it where no sentence is seen to end, and Punkt knows abbreviations that are not in this list, and unusual names.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# What ends with a full stop in the middle of a sentence.
_ABBREVIATIONS = """mr mrs ms dr prof st jr sr gen col sgt capt lt rev hon gov sen rep pres vs no vol fig etc inc ltd
corp co jan feb mar apr jun jul aug sep sept oct nov dec approx dept est e.g i.e u.s u.k u.n a.m p.m d.c ph.d b.c a.d"""
_END = re.compile(r"""[.!?]+["')\]”’]*\s+(?=["'(\[“‘]*[A-Z0-9])""")
_LAST_WORD = re.compile(r"\S*$")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in their order and case."""
    return [word for sentence in sentences(text) for word in _treebank().tokenize(sentence)]


def sentences(text: str) -> list[str]:
    """The text in pieces that end with a sentence."""
    found, start = [], 0
    for match in _END.finditer(text):
        last = _LAST_WORD.findall(text[start : match.start()])[0].lstrip("\"'([“‘")
        is_stop = match[0].lstrip().startswith(".") and not match[0].startswith("..")
        if is_stop and (last.lower() in _ABBREVIATIONS.split() or re.fullmatch(r"[A-Z](\.[A-Z])*", last)):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    return [piece for piece in (*found, text[start:].strip()) if piece]


@cache
def _treebank() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()
