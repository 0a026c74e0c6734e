"""Matched controls: what should do as little as chance does, drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from editlab.probes.channels.components import Writer, writer
from editlab.probes.channels.factors import Factors
from editlab.probes.channels.parts import Part

if TYPE_CHECKING:
    from editlab.lm import LM


def control_writers(
    lm: LM, source: Part, before: int, factors: Factors, n: int, seed: int = 0, *, same_layer: bool = False
) -> list[Writer]:
    """`n` single directions beside a component: a third each other components of its head, components of the same rank
    of other heads, and random directions that the head can write.

    Args:
        before: other heads come from layers before this one. same_layer: from the source's own layer alone.
    """
    assert source.component is not None
    rng = np.random.default_rng([seed, source.layer, source.head, source.component])
    index = factors.index(source)
    others = [i for i in range(factors.width) if i != source.component]
    heads = [
        i
        for i in range(before * factors.n_heads)
        if i != index and (not same_layer or factors.part(i).layer == source.layer)
    ]
    of_head = rng.choice(others, min(n // 3, len(others)), replace=False).tolist()
    of_others = rng.choice(heads, min(n // 3, len(heads)), replace=False).tolist()
    found = [writer(lm, source.whole, factors.v[index, i][None]) for i in of_head]
    found += [writer(lm, factors.part(i), factors.v[i, source.component][None]) for i in of_others]
    while len(found) < n:
        mix = torch.as_tensor(rng.standard_normal(factors.width)).to(factors.v)
        found.append(writer(lm, source.whole, (mix @ factors.v[index])[None]))
    return found


def control_heads(lm: LM, source: Part, before: int, n: int, seed: int = 0, *, close: bool = False) -> list[Part]:
    """Up to `n` other heads of layers before `before`, at random; `close`: those of the nearest layers first."""
    rng = np.random.default_rng([seed, source.layer, source.head])
    heads = [Part(layer, h) for layer in range(before) for h in range(lm.adapter.n_heads)]
    heads = [heads[i] for i in rng.permutation(len(heads)) if heads[i] != source.whole]
    if close:
        heads.sort(key=lambda part: abs(part.layer - source.layer))
    return heads[:n]
