"""Recall: given the first half of a text, does the model say the second? (arXiv 2303.17557)

Exact recall comes from `reading`. ROUGE is taken on the continuation alone (on the whole text, cue included, the
paper's code starts from 0.5 without any study): lower-cased runs of letters and digits, clipped n-gram F1, no stemming.
Texts that are recalled exactly are not generated; the others are, greedily, from the cue.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from editlab.hooks.batch import pad_rows
from editlab.probes.memory.reading import Ids, Reading, cue

if TYPE_CHECKING:
    from editlab.lm import LM

ROWS = 32  # of one batch


def continuations(lm: LM, rows: Sequence[Ids], readings: Sequence[Reading]) -> list[str]:
    """What the model says after each cue, as many tokens as the target has; the target itself where it is exact."""
    said = {i: list(rows[i][cue(rows[i]) :]) for i, r in enumerate(readings) if r.exact}
    open_rows = sorted((i for i in range(len(rows)) if i not in said), key=lambda i: (len(rows[i]), i))
    for start in range(0, len(open_rows), ROWS):
        chunk = open_rows[start : start + ROWS]
        batch = pad_rows([rows[i][: cue(rows[i])] for i in chunk], device=lm.device)
        n = max(len(rows[i]) - cue(rows[i]) for i in chunk)
        for i, new in zip(chunk, lm.generate_ids(batch, n), strict=True):
            said[i] = new[: len(rows[i]) - cue(rows[i])]
    return [lm.tokenizer.decode(said[i], skip_special_tokens=True) for i in range(len(rows))]


def targets(lm: LM, rows: Sequence[Ids]) -> list[str]:
    """What should be said after each cue."""
    return [lm.tokenizer.decode(list(row[cue(row) :]), skip_special_tokens=True) for row in rows]


def rouge(said: str, wanted: str, n: int = 2) -> float:
    """ROUGE-n F1; 0 if either has fewer than n words."""
    a, b = (_grams(text, n) for text in (said, wanted))
    common = (a & b).total()
    return 2 * common / (a.total() + b.total()) if common else 0.0


def rouge_l(said: str, wanted: str) -> float:
    """ROUGE-L F1: of the longest common subsequence of words."""
    a, b = _words(said), _words(wanted)
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = _words(text)
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
