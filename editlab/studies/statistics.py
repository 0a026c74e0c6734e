"""Key statistics by many workers: each sums blocks of the text, and the sums are merged in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from editlab import registry
from editlab.data.corpus import load_corpus
from editlab.edits.covariance import Moments, StatsSettings, collect, partial_moments
from editlab.errors import EditlabError
from editlab.lm import LM
from editlab.progress import OnStep, StepInfo, silent
from editlab.studies.launchers import Launch, Lost

if TYPE_CHECKING:
    from editlab.data.corpus import Corpus


@dataclass(frozen=True)
class Block:
    """One block of batches to sum, of a model that the worker loads by name."""

    model: str
    dtype: str
    layers: tuple[int, ...]
    text: str
    settings: StatsSettings
    number: int


def sum_block(block: Block) -> dict[int, Moments]:
    """What one worker does."""
    lm, corpus = _loaded(block.model, block.dtype), load_corpus(block.text)
    return partial_moments(lm, block.layers, corpus, block.settings, block.number)


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str) -> LM:
    return LM.from_pretrained(model, dtype=dtype)


def collect_on(
    lm: LM,
    model: str,
    layers: Sequence[int],
    text: str,
    settings: StatsSettings,
    launcher: str,
    launch: Launch,
    on_step: OnStep = silent,
) -> dict[int, Moments]:
    """`editlab.edits.covariance.collect`, its blocks summed where the launcher says; the same to the last bit.

    Args:
        lm: the model here, for the cache's keys. model: the name or path by which workers load it.

    Raises:
        EditlabError: a block was lost more often than `retries`.
    """
    corpus: Corpus = load_corpus(text)
    dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")

    def blocks(missing: Sequence[int], n: int) -> Iterator[dict[int, Moments]]:
        tasks = [Block(model, dtype, tuple(missing), text, settings, i) for i in range(n)]
        early: dict[int, dict[int, Moments]] = {}
        at, done = 0, 0
        for number, found in registry.get(launcher, "launchers").launch(sum_block, tasks, launch):
            if isinstance(found, Lost):
                raise EditlabError(f"Block {number} of the statistics was lost: {found.reason}.", "Run it again.")
            early[number], done = found, done + 1
            on_step(StepInfo("key statistics", done, n, "blocks"))
            while at in early:
                yield early.pop(at)
                at += 1

    return collect(lm, layers, corpus, settings, on_step=on_step, blocks=blocks)
