"""The loss of rows of tokens, with a gradient: what studies of memory train on, and dampening differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editlab.hooks.batch import pad_rows

if TYPE_CHECKING:
    from editlab.lm import LM


def token_loss(lm: LM, rows: Sequence[Sequence[int]]) -> Tensor:
    """Mean nll over all tokens of the rows but their first, in nats; logits are taken at these alone."""
    batch = pad_rows(rows, pivots="right", device=lm.device)
    scored = batch.mask.bool()
    scored[torch.arange(batch.n_rows), batch.lengths - 1] = False
    wanted = batch.ids.roll(-1, 1)[scored]
    with lm.session() as s, torch.enable_grad():
        logits = s.run(batch, read=scored).logits
        assert logits is not None
        return cross_entropy(logits, wanted)
