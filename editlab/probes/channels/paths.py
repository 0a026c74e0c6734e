"""Interventions on one edge or one node, and what a reading head makes of them.

With a = z W_O what a source adds to the residual stream, and `change` what is to be added to that (removing: -a, or
-(a . v) v for one component):

1. Edge: the reader B alone sees the change. x is what enters B's layer; B's queries (keys, values) become those of
   x + change, through the model's own norm and projection, at END for queries and everywhere for keys and values.
   Nobody else's input changes; heads that share B's keys or values see the change too and are not looked at.
2. Node: the source's z is changed at every position, and everything after it follows.

Effects are read at END: B's attention to the answer minus that to the other items (`margin`), and the logit of the
answer minus the largest of the others. Edges start from the causal cone at B's layer, for queries one column wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editlab.hooks.batch import Batch
from editlab.hooks.heads import kv_group
from editlab.probes.channels.parts import Mode, Part
from editlab.probes.channels.tasks import Prompt, batch_of

if TYPE_CHECKING:
    from editlab.hooks.cone import Cone
    from editlab.lm import LM

ROWS = 256  # prompts times changes of one run


@dataclass(frozen=True, eq=False)
class Setting:
    """A model on a list of prompts.

    Attributes:
        lm: the model. prompts: all of them at once, one batch.
    """

    lm: LM
    prompts: Sequence[Prompt]
    _cones: dict[int, dict[int, Cone]] = field(default_factory=dict, repr=False)

    @cached_property
    def batch(self) -> Batch:
        """The prompts; END is the last column."""
        return batch_of(self.prompts, self.lm.device)

    @cached_property
    def groups(self) -> np.ndarray:
        """(P,) the template of each prompt."""
        return np.array([p.template for p in self.prompts])

    @cached_property
    def columns(self) -> Tensor:
        """(P, n) where each item stands first, in the padded frame; -1 beyond a prompt's items."""
        most = max(len(p.first) for p in self.prompts)
        found = torch.full((len(self.prompts), most), -1)
        for row, (p, start) in enumerate(zip(self.prompts, self.batch.first.tolist(), strict=True)):
            found[row, : len(p.first)] = torch.tensor(p.first) + start
        return found.to(self.lm.device)

    @cached_property
    def targets(self) -> Tensor:
        """(P,) which item is right."""
        return torch.tensor([p.target for p in self.prompts], device=self.lm.device)

    def margin(self, at_end: Tensor) -> Tensor:
        """(P, ...) attention from END (P, ..., S) to the answer, less the mean of that to the other items."""
        columns = self.columns.view(len(self.prompts), *[1] * (at_end.dim() - 2), -1)
        there = columns >= 0
        paid = at_end.gather(-1, columns.clamp(min=0).expand(*at_end.shape[:-1], -1)) * there
        right = self.targets.view(-1, *[1] * (at_end.dim() - 1)).expand(*paid.shape[:-1], 1)
        answer = paid.gather(-1, right)[..., 0]
        others = (there.sum(-1) - 1).clamp(min=1)
        return answer - (paid.sum(-1) - answer) / others

    @cached_property
    def _item_ids(self) -> Tensor:
        most = max(p.n for p in self.prompts)
        found = torch.full((len(self.prompts), most), -1)
        for row, p in enumerate(self.prompts):
            found[row, : p.n] = torch.tensor(p.item_ids)
        return found.to(self.lm.device)

    def item_logits(self, logits: Tensor) -> Tensor:
        """(P, n) of the items, from (P, V) at END; -inf beyond a prompt's items."""
        picked = logits.float().gather(-1, self._item_ids.clamp(min=0))
        return torch.where(self._item_ids >= 0, picked, -torch.inf)

    def difference(self, logits: Tensor) -> Tensor:
        """(P,) the answer's logit minus the largest of the other items, or of all other tokens where it is alone."""
        items = self.item_logits(logits)
        answer = items.gather(-1, self.targets[:, None])
        if items.shape[1] == 1:
            rest = logits.float().scatter(-1, self._item_ids, -torch.inf)
        else:
            rest = items.scatter(-1, self.targets[:, None], -torch.inf)
        return answer[:, 0] - rest.amax(-1)

    # -- what there is before anything is changed -----------------------------------------------------

    def read(self, sites: Sequence[tuple[str, int]], at_end: bool = False) -> dict[tuple[str, int], Tensor]:
        """Sites of the unchanged model, everywhere or at END."""
        with self.lm.session() as s, torch.no_grad():
            for site, layer in sites:
                s.capture(site, layer, at=-1 if at_end else None)
            seen = s.run(self.batch, read=None).captured
        return {key: seen[key] for key in sites}

    def frozen(self, layers: Iterable[int], cut: int = 0) -> dict[int, Cone]:
        """Causal cones at these layers, made together at their first use."""
        kept = self._cones.setdefault(cut, {})
        wanted = sorted(set(layers) - set(kept))
        if wanted:
            with self.lm.session() as s:
                kept |= s.cones(self.batch, wanted, cut)
        return kept

    # -- edges ----------------------------------------------------------------------------------------

    def edges(self, target: Part, mode: Mode, changes: Sequence[Tensor], *, answers: bool | None = None) -> Edges:
        """What each change on this edge alone does, and what there is without any.

        Args:
            changes: each (P, d) at END for mode q, (P, T, d) for k and v.
            answers: also run to the end for the logit difference; default for values alone, since for queries and
                keys the reader's attention tells, and that ends with its layer.
        """
        answers = mode == "v" if answers is None else answers
        layer, adapter = target.layer, self.lm.adapter
        head = target.head if mode == "q" else kv_group(adapter, target.head)
        cut = self.batch.width - 1 if mode == "q" else 0
        cone = self.frozen([layer], cut)[layer]
        every = [torch.zeros_like(changes[0]), *changes]
        margins, differences = [], []
        each = max(1, ROWS // len(self.prompts))
        for start in range(0, len(every), each):
            some = every[start : start + each]
            rows = torch.arange(len(self.prompts)).repeat(len(some))
            moved = torch.cat([(x[:, None] if mode == "q" else x).to(cone.resid) for x in some])
            wide = cone.rows(rows)
            wanted = projected(self.lm, layer, mode, wide.resid + moved)[:, :, [head]]
            pattern, logits = self._run(wide, layer, mode, head, wanted, answers)
            for i in range(len(some)):
                own = slice(i * len(self.prompts), (i + 1) * len(self.prompts))
                margins.append(self.margin(pattern[own, target.head, -1]))
                if logits is not None:
                    differences.append(self.difference(logits[own]))
        found = [np.stack([x.cpu().numpy() for x in values]) if values else None for values in (margins, differences)]
        assert found[0] is not None
        return Edges(found[0], found[1])

    def _run(
        self, cone: Cone, layer: int, mode: Mode, head: int, wanted: Tensor, answers: bool
    ) -> tuple[Tensor, Tensor | None]:
        with self.lm.session() as s, torch.no_grad():
            s.patch(mode, layer, wanted, heads=[head])
            s.capture("pattern", layer)
            out = s.run(cone, read=cone.batch.last if answers else None)
        return out["pattern", layer], out.logits

    # -- nodes ----------------------------------------------------------------------------------------

    def nodes(self, targets: Sequence[Part], patches: Sequence[tuple[int, int, Patch]]) -> Nodes:
        """The readers' margins and the logit difference with each patch of a head's z at every position, and without.

        Args:
            patches: layer, head, and what to make of its z.
        """
        lowest = min(layer for layer, _, _ in patches)
        cone = self.frozen([lowest])[lowest]
        margins, differences, last = [], [], []
        for wanted in (None, *patches):
            with self.lm.session() as s, torch.no_grad():
                if wanted is not None:
                    layer, head, patch = wanted
                    s.patch("z", layer, patch, heads=[head])
                for reader in sorted({t.layer for t in targets}):
                    s.capture("pattern", reader)
                out = s.run(cone, read=self.batch.last)
            assert out.logits is not None
            found = [self.margin(out["pattern", t.layer][:, t.head, -1]) for t in targets]
            margins.append(torch.stack(found).cpu().numpy() if found else np.zeros((0, len(self.prompts))))
            differences.append(self.difference(out.logits).cpu().numpy())
            last.append(out.logits.float().log_softmax(-1))
        kl = [float((last[0].exp() * (last[0] - x)).sum(-1).mean()) for x in last]
        return Nodes(np.stack(margins), np.stack(differences), np.array(kl))


Patch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Edges:
    """Unchanged first: (1 + n, P) the reader's margins, and logit differences where they were asked for."""

    margin: np.ndarray
    difference: np.ndarray | None


@dataclass(frozen=True)
class Nodes:
    """Unchanged first: (1 + n, readers, P) margins, (1 + n, P) logit differences, (1 + n,) KL at END from unchanged."""

    margin: np.ndarray
    difference: np.ndarray
    kl: np.ndarray


def projected(lm: LM, layer: int, site: Mode, resid: Tensor) -> Tensor:
    """(B, T, heads, e) what the queries, keys or values of `layer` are where its input is `resid` (B, T, d).

    Through the model's own norm and projection, before rotary embedding and norms on queries or keys.
    """
    paths = lm.adapter.layers[layer]
    layout = getattr(paths, site)
    with torch.no_grad():
        x = resid if paths.attn_norm is None else lm.model.get_submodule(paths.attn_norm)(resid)
        raw = lm.model.get_submodule(layout.path)(x)
    return raw[..., layout.index(raw.device)]
