"""Text that has nothing to do with what was studied, for training to go on with."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from editlab.data.corpus import FACTBOOK, load_corpus
from editlab.errors import ConfigError

WORDS = (10, 14)  # fewer make no filler; a longer sentence is cut
_SHARED = 8  # words in a row that a filler sentence must not share with a stimulus
SENTENCE_END = re.compile(r"(?<=[a-z]{3}[.!?]) +(?=[A-Z])")


def filler(n: int, seed: int = 0, source: str = FACTBOOK, *, apart_from: Iterable[str] = ()) -> tuple[str, ...]:
    """`n` distinct sentences of ordinary text, or their first fourteen words, in an order drawn with `seed`.

    Args:
        source: "factbook", or a text file (see `editlab.data.corpus`).
        apart_from: texts with which no sentence may share eight words in a row.

    Raises:
        ConfigError: the source has fewer sentences.
    """
    known = _grams(apart_from)
    sentences = [s.split() for passage in load_corpus(source).passages for s in SENTENCE_END.split(passage)]
    cut = {" ".join(words[: WORDS[1]]): None for words in sentences if len(words) >= WORDS[0]}
    found = [text for text in cut if not known or not _grams([text]) & known]
    if len(found) < n:
        raise ConfigError(
            f"'{source}' has {len(found)} sentences of at least {WORDS[0]} words, {n} are needed.",
            "Train for fewer updates, with smaller batches, or name a larger file.",
        )
    return tuple(random.Random(f"filler {seed}").sample(found, n))


def overlaps(texts: Sequence[str], others: Iterable[str]) -> list[str]:
    """The texts that share eight words in a row with one of the others."""
    known = _grams(others)
    return [text for text in texts if _grams([text]) & known]


def _grams(texts: Iterable[str]) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        found |= {tuple(words[i : i + _SHARED]) for i in range(len(words) - _SHARED + 1)}
    return found
