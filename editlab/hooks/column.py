"""One column by itself: the last position of each row, with every attention output given instead of computed.

With attention frozen nothing carries a change from one position to another, so what a changed head does to the logits
of position N passes only through the residual stream at N: through MLPs and norms, one column wide. `Column` keeps

1. what enters each block at N, what each attention adds there, and the heads' outputs z before the projection;
2. nothing of other positions, so rows may differ in length and need no alignment;

and `run` sends many changed copies of rows through the blocks from a layer on, with the model's own code: attention
modules become stubs that return what they are given, so norms, parallel blocks, post-norms and MLPs are the model's.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editlab.errors import AdapterError, ConfigError, StaleState
from editlab.hooks.adapter import ModelAdapter, weight_ref
from editlab.hooks.batch import Batch
from editlab.hooks.cone import entering_at, restorer, rows_of, until
from editlab.hooks.dispatch import passing, patches_in_force
from editlab.hooks.kv_cache import as_argument
from editlab.hooks.logit_form import token_logits
from editlab.hooks.mode import put_in_eval_mode
from editlab.hooks.placement import stored_weight
from editlab.hooks.points import Frame, Point
from editlab.hooks.routing import decisions_of
from editlab.hooks.session import Session
from editlab.hooks.wishes import Wish

TOLERANCE = 1e-3  # of the check that the last column's logits are the model's, relative to the largest of them


@dataclass(frozen=True)
class Column:
    """The last position of every row of a batch, everything else frozen.

    Attributes:
        z: (B, L, H, e) head outputs. attention: (B, L, D) outputs of the output projections. resid: (B, L, D) what
            enters each block. out: (B, D) what leaves the last one. final: (B, D) what the unembedding reads.
        past: KV cache of the earlier columns, only for the decisions of side memories that hang on it.
        mask: (B, T) of the batch. patches: those of other sessions that were in force.
    """

    model: nn.Module
    adapter: ModelAdapter
    z: Tensor
    attention: Tensor
    resid: Tensor
    out: Tensor
    final: Tensor
    past: DynamicCache | None
    mask: Tensor
    patches: tuple[Wish, ...] = ()

    def run(self, layer: int, rows: Tensor, attention: Callable[[int], Tensor], resid: Tensor | None = None) -> Tensor:
        """(R, D) what the unembedding reads, in the graph of what is given.

        Args:
            layer: the first block that runs; their number for none, from what leaves the last one.
            rows: (R,) which row of the batch each column is a copy of.
            attention: per layer from `layer` on the (R, D) output of its output projection.
            resid: (R, D) what enters there; default what does in the batch.

        Raises:
            StaleState: other patches are in force than when the column was made.
        """
        put_in_eval_mode(self.model)
        if set(patches_in_force(self.model)) != set(self.patches):
            raise StaleState("This column was made while other patches were in force.", "Make the column again.")
        if resid is None:
            resid = self.out[rows] if layer == self.adapter.n_layers else self.resid[rows, layer]
        kwargs: dict[str, Any] = {"use_cache": False}
        if self.past is not None:
            kwargs = {"use_cache": True} | as_argument(self.model, self._blank(rows))
        seen = 0 if self.past is None else self.past.get_seq_length()
        ids = torch.zeros(len(rows), 1, dtype=torch.long, device=resid.device)
        kwargs["attention_mask"] = torch.ones(len(rows), seen + 1, dtype=torch.long, device=resid.device)
        if self.adapter.takes_position_ids:
            kwargs["position_ids"] = ids + seen
        with (
            passing(self.model, self._frame(rows, layer)),
            entering_at(self.model, self.adapter, layer, resid[:, None]),
            _given(self.model, self.adapter, layer, attention),
            until(self.model.get_submodule(self.adapter.unembed)) as kept,
        ):
            self.model(ids, **kwargs)
        return kept[0][:, -1]

    def project(self, layer: int, change: Tensor) -> Tensor:
        """(..., H, D) what a change (..., H, e) of each single head's z adds to the output projection's output."""
        weight = self.output_weight(layer)
        return torch.einsum("...he,dhe->...hd", change, weight.unflatten(1, (self.adapter.n_heads, -1)))

    def direct(self, layer: int, rows: Tensor, shift: Tensor) -> Tensor:
        """(R, D) what the unembedding reads if only the stream itself carries a change (R, D) of attention there."""
        paths = self.adapter.layers[layer]
        if paths.attn_out != paths.o:  # a norm stands between the projection and the stream
            norm = self.model.get_submodule(paths.attn_out)
            plain = self.attention[rows, layer]
            shift = norm(plain + shift) - norm(plain)
        return self.run(self.adapter.n_layers, rows, lambda n: self.attention[rows, n], self.out[rows] + shift)

    def output_weight(self, layer: int) -> Tensor:
        """(D, H e) the output projection."""
        ref = weight_ref(self.model, self.adapter.layers[layer].o)
        return ref.oriented(stored_weight(self.model, ref.name))

    def logits(self, final: Tensor, tokens: Tensor) -> Tensor:
        """See `token_logits`."""
        return token_logits(self.model, self.adapter, final, tokens)

    def _frame(self, rows: Tensor, layer: int) -> Frame:
        """What the columns of `rows` are in their batch, for the patches of sessions that are open."""
        columns = self.mask.shape[1] - 1
        return Frame(self.mask[rows], columns, 1, start=layer, frozen=frozenset(self.patches))

    def _blank(self, rows: Tensor) -> DynamicCache:
        """A cache of the right lengths without content: attention does not look at it, side memories do."""
        assert self.past is not None
        return rows_of(self.past, rows, ())


def column(session: Session, batch: Batch) -> Column:
    """The last column of a left-padded batch, from one forward pass; the session's patches are in force.

    Raises:
        AdapterError: the logits of the column are not the model's.
        ConfigError: a patch is in force where it would hide what heads do, or that logits of single tokens pass by.
    """
    patches = patches_in_force(session.model)
    outputs = {Point(paths.o, "out") for paths in session.adapter.layers}
    for wish in patches:
        if wish.point in outputs or wish.site == "logits":
            raise ConfigError(
                f"Heads cannot be followed by path patching while a {wish} is in force: it acts after them.",
                "Patch 'z', the residual stream or the MLP instead.",
            )
    last = session.adapter.n_layers - 1
    wishes = [session.capture(site, at=-1) for site in ("z", "attn_raw")]
    wishes.append(session.capture("resid_post", last, at=-1))
    layers = range(session.adapter.n_layers)
    cones = session.cones(batch, layers, batch.width - 1)
    kept = session.captured
    stacked = {site: torch.stack([kept[site, n] for n in layers], 1) for site in ("z", "attn_raw")}
    for handle in wishes:
        session.remove(handle)
    past = cones[0].past
    found = Column(
        session.model,
        session.adapter,
        stacked["z"],
        stacked["attn_raw"],
        torch.stack([cones[n].resid[:, -1] for n in layers], 1),
        kept["resid_post", last],
        kept["resid_post", last],
        past if past is not None and decisions_of(past) else None,
        batch.mask,
        tuple(patches),
    )
    rows = torch.arange(batch.n_rows, device=batch.ids.device)
    with torch.no_grad():
        found = replace(found, final=found.run(len(layers), rows, lambda n: found.attention[rows, n]))
    _check(session, batch, found)
    return found


def _check(session: Session, batch: Batch, found: Column) -> None:
    """The first row's logits by the model against those of its column."""
    with torch.no_grad():
        one = batch.rows([0])
        true = session.run(one, read=one.last).logits
        assert true is not None
        tokens = true[0].topk(min(8, true.shape[-1])).indices[None]
        row = torch.zeros(1, dtype=torch.long, device=batch.ids.device)
        again = found.logits(found.run(0, row, lambda layer: found.attention[row, layer]), tokens)[0]
    error = float((again - true[0, tokens[0]]).abs().max() / true.abs().max().clamp(min=1e-12))
    limit = TOLERANCE if true.dtype in (torch.float32, torch.float64) else 0.05
    if not error <= limit:
        raise AdapterError(
            f"The last column of {session.adapter.family} by itself gives other logits than the model "
            f"(relative error {error:.1e}).",
            "This architecture is not supported by path patching.",
        )


@contextmanager
def _given(model: nn.Module, adapter: ModelAdapter, layer: int, attention: Callable[[int], Tensor]) -> Iterator[None]:
    """While open, in this thread, attention modules from `layer` on return what `attention` gives."""
    thread = threading.get_ident()

    def stub(module: Any, number: int) -> Callable[..., Any]:
        forward = module.forward
        # BLOOM's attention module adds the residual stream itself.
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        place = names.index("residual") if "residual" in names else None

        def stubbed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return forward(*args, **kwargs)
            value = attention(number)[:, None]
            if place is not None:
                value = value + (kwargs["residual"] if "residual" in kwargs else args[place])
            return value, None

        return stubbed

    with ExitStack() as stack:
        for number in range(layer, adapter.n_layers):
            module = model.get_submodule(adapter.layers[number].attn)
            stack.callback(restorer(module))
            module.__dict__["forward"] = stub(module, number)
        yield
