"""Which of two passages came first? Sequence order recall (arXiv 2410.08133), asked so that letters do not decide.

The passages stand in the question as A and B, and the model completes "Answer: Segment". With
d = log p(" A") - log p(" B") there, every pair is asked in both orders:

    raw        share of the two questions whose likelier letter is right
    debiased   s = (d(first is A) - d(first is B)) / 2 is above 0: what the letters themselves weigh cancels
    bias       (d(first is A) + d(first is B)) / 2, what is left of a preference for a letter

A model that always says A scores one half on raw and ties on debiased; one that knows scores 1 on both.

Without a question, for models that follow none: `association` asks whether the first passage makes the second likelier
than the other way round, by how much less the other one costs after it; `recency`, a control, whether the first costs
less on its own, which must stay near one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editlab.data.stimuli.segments import OrderedPair
from editlab.errors import ConfigError
from editlab.evaluation.scorer import force
from editlab.hooks.batch import pad_rows
from editlab.joining import TargetPrefix
from editlab.probes.memory.reading import Ids

if TYPE_CHECKING:
    from editlab.lm import LM

CHANCE = 0.5
ANSWER = "Answer: Segment"
LEAST_MASS = 0.2  # of both letters together; with less the model is not answering
BATCH_TOKENS = 2048

Letters = tuple[float, float]
Judge = Callable[[Sequence[str]], Sequence[Letters]]


@dataclass(frozen=True)
class OrderReading:
    """One pair under one state of the model.

    Attributes:
        d_a, d_b: log p(A) - log p(B) when the first passage is A, and when it is B, in nats.
        mass: p(A) + p(B), the smaller of the two questions'.
    """

    d_a: float
    d_b: float
    mass: float

    @property
    def raw(self) -> float:
        """Share of the two questions that are answered rightly; a tie counts one half."""
        return (_above(self.d_a) + _above(-self.d_b)) / 2

    @property
    def debiased(self) -> float:
        """1 right, 0 wrong, 0.5 a tie."""
        return _above((self.d_a - self.d_b) / 2)

    @property
    def bias(self) -> float:
        """Nats by which A is preferred whatever it stands for."""
        return (self.d_a + self.d_b) / 2

    @property
    def says_a(self) -> float:
        """Share of the two questions whose likelier letter is A."""
        return (_above(self.d_a) + _above(self.d_b)) / 2

    def to_record(self) -> dict[str, float]:
        """Plain values."""
        return {
            "d_a": self.d_a, "d_b": self.d_b, "mass": self.mass, "raw": self.raw, "debiased": self.debiased,
            "bias": self.bias, "says_a": self.says_a,
        }  # fmt: skip


def question(a: str, b: str, excerpt: str = "") -> str:
    """What is asked; with the text in front if it is shown."""
    text = f"Text: {excerpt}\n\n" if excerpt else ""
    place = "the text above" if excerpt else "a text that you have read"
    return (
        f"{text}Here are two segments of {place}.\n\nSegment A: {a}\n\nSegment B: {b}\n\n"
        "Which of them comes first in the text, Segment A or Segment B? Answer with its letter."
    )


def questions_of(pairs: Sequence[OrderedPair], *, shown: bool) -> list[str]:
    """Every pair in both orders; with its text in front if it is shown."""
    asked = []
    for p in pairs:
        text = p.excerpt if shown else ""
        asked += [question(p.first, p.second, text), question(p.second, p.first, text)]
    return asked


def read_order(judge: Judge, pairs: Sequence[OrderedPair], *, shown: bool) -> list[OrderReading]:
    """Ask about every pair in both orders.

    Args:
        judge: log p(A) and log p(B) for every question. shown: with the text.
    """
    said = list(judge(questions_of(pairs, shown=shown)))
    found = []
    for one, other in zip(said[::2], said[1::2], strict=True):
        mass = min(math.exp(a) + math.exp(b) for a, b in (one, other))
        found.append(OrderReading(one[0] - one[1], other[0] - other[1], mass))
    return found


def rows_of(lm: LM, questions: Sequence[str], *, chat: bool = True) -> tuple[list[Ids], tuple[int, int]]:
    """Each question and the beginning of its answer as token ids, and the ids of the letters A and B after them.

    Args:
        chat: as a turn of a conversation, if the tokenizer has a template for one.

    Raises:
        ConfigError: the tokenizer has no single token for a letter there.
    """
    in_chat = chat and bool(lm.tokenizer.chat_template)
    rows: list[Ids] = []
    letters = (0, 0)
    for text in questions:
        asked = f"{lm.as_chat(text)}{ANSWER}" if in_chat else f"{text}\n{ANSWER}"
        a, b = (lm.tokens(f"{asked} {letter}", special=not in_chat)[0] for letter in "AB")
        if a[:-1] != b[:-1] or a[-1] == b[-1]:
            raise ConfigError(f"The tokenizer has no single token each for A and B after '{ANSWER}'.")
        rows.append(tuple(a[:-1]))
        letters = (a[-1], b[-1])
    return rows, letters


def letters_of(lm: LM, questions: Sequence[str], *, chat: bool = True) -> list[Letters]:
    """Log p of the letters A and B after each question and the beginning of its answer.

    Args:
        chat: as a turn of a conversation, if the tokenizer has a template for one.

    Raises:
        ConfigError: the tokenizer has no single token for a letter there. RequestError: a question is too long.
    """
    rows, letters = rows_of(lm, questions, chat=chat)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    found: dict[int, Letters] = {}
    while order:
        n = max(1, BATCH_TOKENS // len(rows[order[-1]]))
        chunk, order = order[-n:], order[:-n]
        batch = pad_rows([rows[i] for i in chunk], pivots="right", device=lm.device)
        read = torch.zeros_like(batch.mask, dtype=torch.bool)
        read[torch.arange(len(chunk)), batch.lengths - 1] = True
        log_p = lm.forward(batch, read=read).float().log_softmax(-1)[:, list(letters)]
        found |= zip(chunk, [(float(a), float(b)) for a, b in log_p.tolist()], strict=True)
    return [found[i] for i in range(len(rows))]


def association(lm: LM, pairs: Sequence[OrderedPair]) -> list[tuple[float, float]]:
    """For each pair `association` and `recency`: 1 says the right order, 0 the wrong one, 0.5 a tie.

    Every passage is scored from its second word on, so that the same tokens are compared alone and after the other.
    """
    asked: list[tuple[str, str, TargetPrefix]] = []
    for p in pairs:
        for passage, other in ((p.first, p.second), (p.second, p.first)):
            head, rest = passage.split(" ", 1)
            asked += [(head, rest, "space"), (f"{other} {head}", rest, "space")]
    nll = [s.nll for s in force(lm, asked)]
    found = []
    for first, after_second, second, after_first in zip(*(nll[i::4] for i in range(4)), strict=True):
        found.append((_above((second - after_first) - (first - after_second)), _above(second - first)))
    return found


def _above(x: float) -> float:
    return 1.0 if x > 0 else 0.0 if x < 0 else 0.5
