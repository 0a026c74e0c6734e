"""What removing a part costs on prose that has nothing to do with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from editlab.data.corpus import held_out
from editlab.hooks.batch import pad_rows, within_positions
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.parts import Part

if TYPE_CHECKING:
    from editlab.lm import LM

TOKENS = 96


def perplexity(lm: LM, passages: int) -> float:
    """Of the first tokens of held-out passages, each after the sink."""
    longest = within_positions(lm.model, TOKENS + 1)
    rows = [ids[:longest] for ids in (lm.tokens(text, sink=True)[0] for text in held_out()[: 3 * passages])]
    rows = [ids for ids in rows if len(ids) > longest // 2][:passages]
    total = n = 0.0
    for ids in rows:
        batch = pad_rows([ids], device=lm.device)
        log_p = lm.forward(batch)[0, :-1].float().log_softmax(-1)
        total -= float(log_p.gather(-1, batch.ids[0, 1:, None]).sum())
        n += len(ids) - 1
    return math.exp(total / n)


def perplexity_with(lm: LM, removed: Part, passages: int) -> tuple[float, float]:
    """Before and after a component or a head is taken out of the weights of a fork; NaN for no passages."""
    if not passages:
        return math.nan, math.nan
    before = lm.at_state(f"channels prose {passages}", lambda: perplexity(lm, passages))
    twin = lm.fork()
    with torch.no_grad():
        if removed.component is None:
            twin.prune_heads([(removed.layer, removed.head)])
        else:
            twin.ledger.apply(component_edit(twin, [removed], 0.0))
    return before, perplexity(twin, passages)
