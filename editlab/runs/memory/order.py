"""Sequence order recall as a control of the other probes (arXiv 2410.08133): does a model know what came first?

1. Before anything is studied, every pair of passages is asked about with the text in sight ("in context"), and
   without ("none": what plausibility alone gives).
2. The texts are studied for some passes, and all pairs are asked again without the text ("studied").

What study adds is studied less none, pair by pair. Small models are expected at chance in all three, with a strong
preference for a letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from editlab.data.stimuli.segments import OrderedPair, bin_edges, ordered_pairs
from editlab.probes.memory.order import association, letters_of, questions_of, read_order, rows_of
from editlab.probes.memory.reading import Ids, read
from editlab.progress import OnStep, silent
from editlab.runs.memory.course import Course, Phase, Row
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.settings import TrainingSettings
from editlab.runs.memory.study import exposure_batches, ids_of

if TYPE_CHECKING:
    from editlab.lm import LM

CONDITIONS = ("in context", "none", "studied")


class OrderSettings(TrainingSettings):
    """Settings of `order`."""

    file: str | None = Field(None, description="text that passages are from; default invented events in random order")
    items: int = Field(24, ge=4, description="pairs of passages, four from every text")
    words: int = Field(150, ge=20, description="words of a text")
    length: int = Field(20, ge=4, description="words of a passage")
    seeds: int = Field(2, ge=1, description="repetitions with texts and order of their own")
    exposures: int = Field(3, ge=1, le=100, description="passes over the studied texts")
    batch: int = Field(1, ge=1, description="texts of an update")
    chat: bool = Field(True, description="ask in a turn of a conversation, if the tokenizer has a template for one")
    block: int = Field(512, ge=16, description="tokens of a text, at most")

    @model_validator(mode="after")
    def _fits(self) -> OrderSettings:
        edges = bin_edges(self.words, self.length)
        if list(edges) != sorted(set(edges)):
            raise ValueError("'words' must be more than four times 'length'")
        return self


def order_courses(lm: LM, settings: OrderSettings, on_step: OnStep = silent) -> list[Course]:
    """A course a seed.

    Raises:
        ConfigError: the file is too short, or cannot be read.
    """
    courses = []
    for i in range(settings.seeds):
        seed = settings.seed + i
        pairs = ordered_pairs(settings.items, seed, words=settings.words, length=settings.length, source=settings.file)
        texts = [ids_of(lm, text, settings.block) for text in dict.fromkeys(p.excerpt for p in pairs)]
        questions, _ = rows_of(lm, questions_of(pairs, shown=True), chat=settings.chat)  # the longest that are asked
        study = exposure_batches(texts, settings.exposures, settings.batch, seed)
        courses.append(
            Course(
                name=f"seed {seed}",
                phases=(Phase(study, settings.lr),),
                probes=(0, len(study)),
                reads=max(map(len, questions)),
                measure=partial(_measure, pairs=pairs, texts=texts, seed=seed, chat=settings.chat),
            )
        )
    return courses


def _measure(
    learner: Learner, update: int, *, pairs: Sequence[OrderedPair], texts: Sequence[Ids], seed: int, chat: bool
) -> list[Row]:
    lm = learner.lm
    losses = [r.loss for r in read(lm, texts)]
    out = []
    for condition in ("none", "in context") if update == 0 else ("studied",):
        is_shown = condition == "in context"
        found = read_order(partial(letters_of, lm, chat=chat), pairs, shown=is_shown)
        free = [(None, None)] * len(pairs) if is_shown else association(lm, pairs)
        out += [
            {"seed": seed, "condition": condition, "item": i, "text": p.index, "bin": p.bin, "distance": p.distance,
             **reading.to_record(), "association": linked, "recency": sooner, "text_loss": losses[p.index]}
            for i, (p, reading, (linked, sooner)) in enumerate(zip(pairs, found, free, strict=True))
        ]  # fmt: skip
    return out
