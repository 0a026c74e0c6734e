"""Gains on attention heads as an edit: what prunes a head in the weights themselves.

Head h of a layer gives W[:, h] z_h through its columns of the output projection W, so a gain on the head is a gain on
these columns, and a mean in its place is a constant on the projection's bias:

    W[:, h] <- g W[:, h]        b <- b + (1 - g) W[:, h] mean(z_h)

It is an entry of the ledger like any edit: undone, saved, exported, and composed with edits of weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from editlab.errors import ConfigError
from editlab.hooks.adapter import ModelAdapter, weight_ref
from editlab.hooks.heads import Head, HeadGains, check_heads, head_name
from editlab.hooks.placement import stored_weight
from editlab.state.edit import Delta, Edit


def head_edit(model: nn.Module, adapter: ModelAdapter, wanted: HeadGains) -> Edit:
    """The edit that puts these gains into the weights.

    Raises:
        ConfigError: no head is changed, there is no such head, or a mean was asked for and the output projection has no
            bias to put it in.
    """
    changed = wanted.changed
    heads = check_heads(adapter, changed)
    if not heads:
        raise ConfigError("No head was given.", "Name one or more, as in 23.4.")
    deltas: dict[str, Delta] = {}
    for layer in sorted({layer for layer, _ in heads}):
        here = [head for head in heads if head[0] == layer]
        gains = torch.ones(adapter.n_heads, dtype=torch.float64)
        for head in here:
            gains[head[1]] = changed[head]
        ref = weight_ref(model, adapter.layers[layer].o)
        rows, columns = model.get_parameter(ref.name).shape
        axis, size = (0, columns) if ref.transposed else (1, rows)
        width = (rows, columns)[axis] // adapter.n_heads
        deltas[ref.name] = Delta.gain(gains.repeat_interleave(width), axis, size)
        if any(head in wanted.means for head in here):
            deltas[bias_of(model, adapter, layer)] = Delta(dense=_constant(model, adapter, layer, wanted, changed))
    names = ", ".join(head_name(head) for head in heads)
    by = " by their means" if wanted.means else ""
    what = f"heads {names} pruned{by}" if not any(changed.values()) else f"gains on heads {names}"
    config = {"heads": {head_name(head): changed[head] for head in heads}, "ablation": "mean" if by else "zero"}
    return Edit(method="prune", config=config, requests=[], deltas=deltas, info={"what": what})


def bias_of(model: nn.Module, adapter: ModelAdapter, layer: int) -> str:
    """The parameter that holds what is added whatever the heads do.

    Raises:
        ConfigError: the output projection has none.
    """
    name = f"{adapter.layers[layer].o}.bias"
    if name not in dict(model.named_parameters()):
        raise ConfigError(
            f"A mean cannot be kept in {adapter.family}: its output projections have no bias to put it in.",
            "Prune by zero, or measure the mean without keeping it.",
        )
    return name


def _constant(
    model: nn.Module, adapter: ModelAdapter, layer: int, wanted: HeadGains, changed: Mapping[Head, float]
) -> Tensor:
    """(D,) float64: what the means add to the output projection's bias."""
    ref = weight_ref(model, adapter.layers[layer].o)
    weight = ref.oriented(stored_weight(model, ref.name)).cpu().double()
    of_head = weight.unflatten(1, (adapter.n_heads, -1))  # (D, H, e)
    total = torch.zeros(weight.shape[0], dtype=torch.float64)
    for head, gain in changed.items():
        if head[0] == layer and head in wanted.means:
            total += (1 - gain) * (of_head[:, head[1]] @ wanted.means[head].cpu().double())
    return total
