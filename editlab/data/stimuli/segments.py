"""Two passages of one text, to ask which came first (sequence order recall, arXiv 2410.08133).

Invented events that have nothing to do with each other are told in random order: only who remembers the text can know
which came first. A book of one's own asks about real text, whose order may also be guessed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from editlab.data.corpus import load_corpus
from editlab.data.stimuli.filler import SENTENCE_END
from editlab.data.stimuli.pairs import stimuli
from editlab.errors import ConfigError

BINS = 4


@dataclass(frozen=True)
class OrderedPair:
    """Two passages that do not overlap.

    Attributes:
        excerpt: the text that both are from; `index` counts excerpts. first, second: in the order of the text.
        distance: words from the beginning of the one to that of the other. bin: 0 (near) to 3 (far).
    """

    index: int
    excerpt: str
    first: str
    second: str
    distance: int
    bin: int


def bin_edges(words: int, length: int) -> tuple[float, ...]:
    """Distances at which the bins begin, and the end of the last one (the paper's, for texts of up to 1000 words)."""
    return (length, words / 4, words / 3, words / 2, words / 0.8)


def ordered_pairs(
    n: int, seed: int = 0, *, words: int = 150, length: int = 20, source: str | None = None
) -> tuple[OrderedPair, ...]:
    """`n` pairs, one of each distance from every excerpt.

    Args:
        words: of an excerpt, and no more than end its last sentence. length: words of a passage, which begins where a
            sentence does.
        source: a text file; default invented events. No excerpt shares a sentence with another.

    Raises:
        ConfigError: the passages are too long for the excerpts, or the file is too short.
    """
    edges = bin_edges(words, length)
    if any(a >= b for a, b in pairwise(edges)):
        raise ConfigError(
            f"Passages of {length} words are too long for excerpts of {words}.", "Use at least four times as many."
        )
    rng = random.Random(f"order {seed}")
    need = -(-n // BINS)
    found: list[OrderedPair] = []
    for excerpt in _excerpts(rng, need, words, source, seed):
        pairs = _one_of_each(rng, excerpt, length, edges)
        if pairs is not None:
            index = len(found) // BINS
            found += [
                OrderedPair(index, " ".join(excerpt), first, second, distance, i)
                for i, (first, second, distance) in enumerate(pairs)
            ]
        if len(found) >= n:
            return tuple(found[:n])
    where = "Invented text" if source is None else f"'{source}'"
    raise ConfigError(
        f"{where} gives {len(found)} pairs of passages, {n} are needed.",
        "Use fewer (items), a longer text, or more words: every excerpt must have passages at all four distances.",
    )


def _excerpts(rng: random.Random, need: int, words: int, source: str | None, seed: int) -> Iterator[list[str]]:
    """Lists of sentences, of `words` words or a few more, in random order."""
    if source is None:
        # A quarter more than are needed: some have no two passages at one of the distances.
        count = (need + need // 4 + 2) * (words // 12 + 1)
        texts = stimuli("sentence", count, seed).texts
        sentences = rng.sample(texts[:count], count)
    else:
        sentences = SENTENCE_END.split(" ".join(load_corpus(source).passages))
    blocks: list[list[str]] = [[]]
    for sentence in sentences:
        if sum(len(s.split()) for s in blocks[-1]) >= words:
            blocks.append([])
        blocks[-1].append(sentence)
    whole = [block for block in blocks if sum(len(s.split()) for s in block) >= words]
    rng.shuffle(whole)
    yield from whole


def _one_of_each(
    rng: random.Random, sentences: list[str], length: int, edges: tuple[float, ...]
) -> list[tuple[str, str, int]] | None:
    """For every distance two passages and how far apart they begin; None if there are none at one of them."""
    text = " ".join(sentences).split()
    starts = [0]
    for sentence in sentences[:-1]:
        starts.append(starts[-1] + len(sentence.split()))
    starts = [s for s in starts if s + length <= len(text)]
    chosen = []
    for low, high in pairwise(edges):
        fit = [(a, b) for a in starts for b in starts if low <= b - a < high]
        if not fit:
            return None
        a, b = rng.choice(fit)
        chosen.append((" ".join(text[a : a + length]), " ".join(text[b : b + length]), b - a))
    return chosen
