"""Path patching of every head at once: what a head's direct path (and MLPs after it) does to memory against context.

The path-patching form of the IOI paper (arXiv 2211.00593) with MLPs in the path, on conflict prompts; the corruption
recipe and the score are ours, since PH3 (arXiv 2402.18154) could not be read in full.

1. Clean run: the conflict prompt X. Corrupted run: X' with another subject and context answer ("both"), or one of them.
2. For head (l, h): run X with every other head's output frozen at all positions, this head's taken from X', MLPs and
   norms computed anew. LD~ is logit(memory) - logit(context) at the last position N; S(l, h) = LD - LD~ per item.
   S > 0: the head's clean output pushes memory's answer over the context's (a memory head); S < 0: a context head.

With attention frozen only z'[l, N, h] can matter, so one column per head is enough (`editlab.hooks.column`): two
prefills give all that is kept, and the rows of a layer's heads go through the MLPs above it. The numbers are those of
the full forwards, prompts may differ in length, and no alignment of tokens is needed.

Other estimands of the same machinery:

    direct     MLPs frozen too: the head's own write, read through the final norm
    total      the head replaced at N, later attention and MLPs computed anew from N on (earlier keys and values kept)
    gradient   <dLD/dz, z - z'> in the graph with attention frozen: all heads from one backward pass; a first pass
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from editlab.errors import ConfigError, RequestError
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.column import Column, column
from editlab.hooks.cone import until
from editlab.hooks.heads import Head
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.conflicts.items import Item

Corruption = Literal["both", "subject", "context", "zero", "mean"]
Estimand = Literal["path", "direct", "total", "gradient"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
ESTIMANDS: tuple[Estimand, ...] = get_args(Estimand)
ROWS = 2048  # columns of one forward pass
BATCH_ITEMS = 48


def head_scores(
    lm: LM,
    items: Sequence[Item],
    corruptions: Sequence[Corruption] = ("both",),
    *,
    estimand: Estimand = "path",
    draws: int = 2,
    heads: Sequence[Head] | None = None,
    on_step: OnStep = silent,
) -> dict[Corruption, Tensor]:
    """(items, L, H) float64 scores S by corruption, averaged over partners; NaN for heads that were not asked for.

    Args:
        draws: partners per item, at most as many as items have; zero and mean need none.
        heads: default all.

    Raises:
        ConfigError: there is no item, corruption or estimand like that. RequestError: an item has no partner.
    """
    if not items:
        raise ConfigError("There is no item to score heads on.")
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ConfigError(f"There is no corruption '{name}'.", f"Use {', '.join(CORRUPTIONS)}.")
    if estimand not in ESTIMANDS:
        raise ConfigError(f"There is no estimand '{estimand}'.", f"Use {', '.join(ESTIMANDS)}.")
    shape = (len(items), lm.adapter.n_layers, lm.adapter.n_heads)
    wanted = torch.zeros(shape[1:], dtype=torch.bool)
    if heads is None:
        wanted[:] = True
    else:
        for layer, head in heads:
            wanted[layer, head] = True
    found = {name: torch.zeros(shape, dtype=torch.float64) for name in corruptions}
    for start in range(0, len(items), BATCH_ITEMS):
        chunk = items[start : start + BATCH_ITEMS]
        clean = Clean(lm, chunk)
        for n, name in enumerate(corruptions):
            on_step(
                StepInfo(
                    "patching heads", start * len(corruptions) + n * len(chunk), len(items) * len(corruptions), "items"
                )
            )
            others = clean.replacements(name, draws)
            for z in others:
                found[name][start : start + len(chunk)] += clean.scores(z, estimand, wanted) / len(others)
    on_step(StepInfo("patching heads", len(items) * len(corruptions), len(items) * len(corruptions), "items"))
    for scores in found.values():
        scores[:, ~wanted] = float("nan")
    return found


class Clean:
    """The clean runs of some items, and what replaces heads in them."""

    def __init__(self, lm: LM, items: Sequence[Item]) -> None:
        self.lm, self.items = lm, items
        self.batch = pad_rows([item.ids for item in items], device=lm.device)
        self.column = _column(lm, self.batch)
        self.tokens = torch.tensor([[item.tok_mem, item.tok_ctx] for item in items], device=lm.device)
        self.difference = self._difference(self.column.final, torch.arange(len(items), device=lm.device))

    def replacements(self, corruption: Corruption, draws: int) -> list[Tensor]:
        """(B, L, H, e) head outputs at N of each draw of a corruption."""
        z = self.column.z
        if corruption == "zero":
            return [torch.zeros_like(z)]
        if corruption == "mean":
            return [z.mean(0, keepdim=True).expand_as(z)]
        n = min([draws, *(len(item.partners) for item in self.items)])
        if not n:
            raise RequestError(
                "An item has no partner to corrupt its prompt with: too few other subjects begin with other tokens.",
                "Use more subjects, or the corruptions zero and mean.",
            )
        return [
            _column(
                self.lm,
                pad_rows(
                    [self.lm.tokens(item.corrupted(corruption, item.partners[draw]))[0] for item in self.items],
                    device=self.lm.device,
                ),
            ).z
            for draw in range(n)
        ]

    def scores(self, z: Tensor, estimand: Estimand, wanted: Tensor) -> Tensor:
        """(B, L, H) float64 LD - LD~ with head outputs replaced by `z`, one at a time."""
        if estimand == "gradient":
            return (self._gradient() * (self.column.z - z)).sum(-1).cpu().double()
        out = torch.zeros(z.shape[:3], dtype=torch.float64)
        with torch.no_grad():
            for layer in range(z.shape[1]):
                heads = wanted[layer].nonzero()[:, 0].tolist()
                if heads:
                    after = self._layer(layer, z[:, layer], heads, estimand)
                    out[:, layer, heads] = (self.difference[:, None] - after).cpu().double()
        return out

    def _layer(self, layer: int, z: Tensor, heads: list[int], estimand: Estimand) -> Tensor:
        """(B, n) LD~ of each of these heads of one layer."""
        n_items = len(self.items)
        rows = torch.arange(n_items, device=z.device).repeat_interleave(len(heads))
        if estimand == "total":
            return self._total(layer, z, heads, rows)
        change = self.column.project(layer, z - self.column.z[:, layer])[:, heads]  # (B, n, D)
        shift = change.flatten(0, 1)
        found = [
            self._difference(self._patched(layer, r, d, estimand), r)
            for r, d in zip(rows.split(ROWS), shift.split(ROWS), strict=True)
        ]
        return torch.cat(found).unflatten(0, (n_items, -1))

    def _patched(self, layer: int, rows: Tensor, shift: Tensor, estimand: Estimand) -> Tensor:
        attention = self.column.attention
        if estimand == "path":
            return self.column.run(layer, rows, lambda n: attention[rows, n] + (shift if n == layer else 0))
        return self.column.direct(layer, rows, shift)

    def _total(self, layer: int, z: Tensor, heads: list[int], rows: Tensor) -> Tensor:
        """Attention and MLPs above the head computed anew, for the last column only."""
        cone = self.lm.prefix(self.batch, layer, self.batch.width - 1)
        found: list[Tensor] = []
        for part in rows.split(max(1, ROWS // 8)):
            first = sum(f.numel() for f in found)
            number = torch.arange(first, first + len(part)) % len(heads)
            which = torch.tensor(heads)[number]
            at = torch.arange(len(part))

            def replaced(value: Tensor, part: Tensor = part, which: Tensor = which, at: Tensor = at) -> Tensor:
                value = value.clone()
                value[at, 0, which] = z[part, which]
                return value

            chosen = cone.rows(part)
            unembed = self.lm.model.get_submodule(self.lm.adapter.unembed)
            with self.lm.session() as s, until(unembed) as kept:
                s.patch("z", layer, replaced)
                s.run(chosen)
            found.append(self._difference(kept[0][:, -1], part))
        return torch.cat(found).unflatten(0, (len(self.items), -1))

    def _gradient(self) -> Tensor:
        """(B, L, H, e) dLD/dz at N with attention frozen."""
        rows = torch.arange(len(self.items), device=self.batch.ids.device)
        with torch.enable_grad():
            leaves = [z.detach().requires_grad_() for z in self.column.z.unbind(1)]
            shift = {
                n: torch.einsum("bhe,dhe->bd", leaf - leaf.detach(), self._weight(n)) for n, leaf in enumerate(leaves)
            }
            final = self.column.run(0, rows, lambda n: self.column.attention[:, n] + shift[n])
            difference = self._difference(final, rows)
            return torch.stack(torch.autograd.grad(difference.sum(), leaves), 1)

    def _weight(self, layer: int) -> Tensor:
        return self.column.output_weight(layer).unflatten(1, (self.column.adapter.n_heads, -1))

    def _difference(self, final: Tensor, rows: Tensor) -> Tensor:
        logits = self.column.logits(final, self.tokens[rows])
        return logits[:, 0] - logits[:, 1]


def _column(lm: LM, batch: Batch) -> Column:
    with lm.session() as s, torch.no_grad():
        return column(s, batch)
