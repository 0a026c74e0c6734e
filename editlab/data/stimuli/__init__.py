"""Texts to study and texts to tell them from: made by rule from a seed, or read from a file; `README.md` lists them."""

from __future__ import annotations

from editlab.data.stimuli.filler import filler, overlaps
from editlab.data.stimuli.pairs import KINDS, Pair, Stimuli, read_stimuli, stimuli
from editlab.data.stimuli.passages import invented_passages

__all__ = [
    "KINDS",
    "Pair",
    "Stimuli",
    "filler",
    "invented_passages",
    "overlaps",
    "read_stimuli",
    "stimuli",
]
