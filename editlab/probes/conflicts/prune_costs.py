"""What pruning is measured by: answers with and without a context, and ordinary prose, each read many times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.data.corpus import held_out
from editlab.hooks.batch import pad_rows, within_positions
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts.items import Items
from editlab.probes.conflicts.rates import by_subject
from editlab.probes.conflicts.readout import Answers, Prompts, judged

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.conflicts.heads import Direction

PASSAGES, PASSAGE_TOKENS = 16, 129


class Bench:
    """A set of items and everything pruning is measured by, read many times.

    Args:
        lowest: the first layer in which heads will be pruned.
    """

    def __init__(self, lm: LM, items: Items, lowest: int) -> None:
        self.lm, self.items = lm, items
        self.conflict = Prompts(lm, [item.ids for item in items.items])
        self.closed = Prompts(lm, [item.closed for item in items.items])
        for prompts in (self.conflict, self.closed):
            prompts.freeze(lowest)
        self.base = self.answers(None)
        self.base_closed = self.closed_book(None)

    def answers(self, gains: HeadGains | None) -> Answers:
        """Answers to the conflicts."""
        return judged(self.conflict.every(gains), self.items)

    def closed_book(self, gains: HeadGains | None) -> Answers:
        """Answers without any context."""
        return judged(self.closed.every(gains), self.items)

    def recall(self, gains: HeadGains) -> float:
        """The share of closed-book answers that stays, of the unpruned model's right ones."""
        kept = self.base_closed.is_memory
        found = self.closed_book(gains).is_memory
        return float(found[kept].mean()) if kept.any() else float("nan")


class Prose:
    """Perplexity and KL on ordinary text (held-out passages of the factbook: 2,048 predicted tokens).

    Args:
        lowest: the first layer in which heads will be pruned.
    """

    def __init__(self, lm: LM, lowest: int = 0) -> None:
        rows, width = [], within_positions(lm.model, PASSAGE_TOKENS)
        for text in held_out():
            ids, _ = lm.tokens(text, sink=True)
            if len(ids) >= width:
                rows.append(ids[:width])
            if len(rows) == PASSAGES:
                break
        self.lm = lm
        self.batch = pad_rows(rows, pivots="right", device=lm.device)
        parts = [self.batch.rows(part) for part in torch.arange(len(rows)).split(4)]
        self.cones = [lm.prefix(part, lowest) for part in parts]
        self.base = self._log_probs(None)
        self.nll = self._nll(self.base)

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return self.batch.n_rows * (self.batch.width - 1)

    def cost(self, gains: HeadGains) -> dict[str, float]:
        """Perplexity over the unpruned model's, and the mean KL of the next token from it."""
        found = self._log_probs(gains)
        kl = float((self.base.exp() * (self.base - found)).sum(-1).mean())
        return {"perplexity": math.exp(self._nll(found) - self.nll), "kl": kl}

    def _log_probs(self, gains: HeadGains | None) -> Tensor:
        out = []
        for cone in self.cones:
            with self.lm.session() as s, torch.no_grad(), (gains or HeadGains({})).within(s):
                logits = s.run(cone).logits
            assert logits is not None
            out.append(logits[:, :-1].float().log_softmax(-1).cpu())
        return torch.cat(out)

    def _nll(self, log_probs: Tensor) -> float:
        return -float(log_probs.gather(-1, self.batch.ids.cpu()[:, 1:, None]).double().mean())


def share(answers: Answers, to: Direction) -> float:
    """The share of answers from there, over subjects."""
    hit = answers.is_memory if to == "memory" else answers.is_context
    return float(by_subject(hit.astype(float), answers.subjects).mean())
