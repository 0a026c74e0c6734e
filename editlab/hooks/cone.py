"""The causal cone: recompute only what a change at (layer L, column p) can alter.

A change to the residual stream entering layer L at columns p and later reaches layers L and up, columns p and
later, and nothing else. So one forward of the whole batch keeps

1. the keys and values of columns before p, for layers from L on;
2. the residual stream entering layer L at columns from p on.

After that each of many runs starts from the kept state: layers below L are replaced by stubs, columns before p
are served from the KV cache, and Hugging Face's own code does the rest (masks, rotary tables, soft-caps, final
norm, head), so the result is the full forward's. Rows are padded so that p is one column for all of them
(`pad_rows(..., pivots=...)`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editlab.errors import ConfigError, StaleState
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.batch import Batch
from editlab.hooks.points import Frame, select
from editlab.hooks.routing import select_rows
from editlab.hooks.wishes import Wish


@dataclass(frozen=True)
class Cone:
    """A batch frozen outside the reach of a change at (`layer`, `cut`).

    Attributes:
        batch: all columns, frozen ones included.
        layer: the first layer that runs; its `resid_pre` is `resid`.
        cut: the first column that runs.
        resid: (B, T - cut, D) residual stream entering `layer`.
        past: keys and values of columns before `cut`, None when there are none.
        stamps: version of the weights below `layer`, and of all weights, when this was made.
        patches: those that were in force and that what is frozen rests on.
    """

    batch: Batch
    layer: int
    cut: int
    resid: Tensor
    past: DynamicCache | None
    stamps: tuple[int, int] = (0, 0)
    patches: tuple[Wish, ...] = ()

    @property
    def frame(self) -> Frame:
        """What a forward pass from here computes."""
        width = self.batch.width - self.cut
        return Frame(self.batch.mask, self.cut, width, start=self.layer, frozen=frozenset(self.patches))

    def rows(self, index: Tensor | Sequence[int]) -> Cone:
        """The cone of the rows at `index` (repeats allowed): one row per change to try."""
        index = torch.as_tensor(index, device=self.resid.device)
        batch, past = self.batch.rows(index), None
        if self.past is not None:
            past = shallow(self.past)
            past.batch_select_indices(index)
            select_rows(past, index)
        return replace(self, batch=batch, resid=self.resid[index], past=past)

    def entered(self, index: Tensor, resid: Tensor) -> Cone:
        """Rows at `index` with another stream (R, T - cut, D) entering, for runs that end with the first layer.

        Of the earlier columns only what that layer attends to is taken along.
        """
        past = None
        if self.past is not None:
            past = rows_of(self.past, index, (self.layer,))
        return replace(self, batch=self.batch.rows(index), resid=resid, past=past)

    def cache(self) -> DynamicCache:
        """A KV cache for one run; the run's own keys and values do not end up in `past`."""
        if self.past is None:
            raise ConfigError("This cone starts at the first column and has no earlier keys.")
        return shallow(self.past)

    def check(self, stamp: Callable[[int | None], int], in_force: Sequence[Wish] = ()) -> None:
        """Raise StaleState if weights or patches that this state rests on have changed.

        Keys of earlier columns come from every layer; without them only layers below count. Patches from `layer` on
        that came later act on the columns that run.
        """
        below, everything = self.stamps
        what = ""
        if stamp(self.layer) != below or (self.past is not None and stamp(None) != everything):
            what = "was made by weights that have changed since"
        for wish in self.patches:
            if wish not in in_force:
                what = f"was made under a {wish} that is not in force any more"
        for wish in in_force:
            if lies_below(wish, self.layer) and wish not in self.patches:
                what = f"was made without the {wish}, which changes what enters that layer"
        if what:
            raise StaleState(f"The state cached at layer {self.layer} {what}.", "Make the cone again.")


def lies_below(wish: Wish, layer: int) -> bool:
    """Whether a patch changes what enters `layer`."""
    return wish.site == "embed" or (wish.layer is not None and wish.layer < layer)


def reaches_frozen(wish: Wish, cut: int, frame: Frame) -> bool:
    """Whether a patch may change keys or values of columns before `cut`; `frame` is that of the whole batch."""
    if wish.layer is None and wish.site != "embed":
        return False  # it comes after all keys and values
    chosen = select(wish.at, frame)
    return chosen is None or bool((chosen[1] < cut).any())


def shallow(cache: DynamicCache) -> DynamicCache:
    """A cache that shares the tensors: layers grow by concatenation into new tensors, never in place."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def rows_of(cache: DynamicCache, index: Tensor, layers: Container[int]) -> DynamicCache:
    """The rows at `index` (repeats allowed), with the content of `layers` only; of the others the lengths are kept."""
    new = shallow(cache)
    for i, entry in enumerate(new.layers):
        for name in ("keys", "values"):
            held = getattr(entry, name)
            blank = held.new_zeros(()).expand(len(index), *held.shape[1:])
            setattr(entry, name, held[index] if i in layers else blank)
    select_rows(new, index)
    return new


def cropped(cache: DynamicCache, layers: Sequence[int], cut: int) -> dict[int, DynamicCache]:
    """For runs from each of `layers`: the first `cut` columns of `cache`; below the layer only the lengths are kept.

    Masks are sized by the first layer's length, so even the layers that no longer run must state it. The caches of
    several layers share their tensors.
    """
    kept = {
        (i, name): getattr(entry, name)[:, :, :cut].clone()
        for i, entry in enumerate(cache.layers)
        for name in ("keys", "values")
        if i >= min(layers)
    }
    found = {}
    for layer in layers:
        new = shallow(cache)
        for i, entry in enumerate(new.layers):
            for name in ("keys", "values"):
                full = getattr(entry, name)[:, :, :cut]
                setattr(entry, name, kept[i, name] if i >= layer else full.new_zeros(()).expand(full.shape))
        found[layer] = new
    return found


class Stop(Exception):
    """Ends a forward pass that has yielded everything asked of it; never leaves the hooks layer."""


@contextmanager
def until(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, this thread's forward pass ends at the input of `module`, which is put into the yielded list."""
    kept: list[Tensor] = []
    thread = threading.get_ident()

    def stop(m: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != thread:
            return
        kept.append(args[0] if args else kwargs["hidden_states"])
        raise Stop

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield kept
    except Stop:
        pass
    finally:
        handle.remove()


@contextmanager
def reading_at(unembed: nn.Module, chosen: tuple[Tensor, Tensor]) -> Iterator[None]:
    """While open, this thread's forward pass takes logits of the `chosen` rows and columns only: (1, N, V)."""
    thread = threading.get_ident()

    def gather(module: nn.Module, args: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        return (args[0][chosen].reshape(1, -1, args[0].shape[-1]),)

    handle = unembed.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def entering_at(model: nn.Module, adapter: ModelAdapter, layer: int, resid: Tensor) -> Iterator[None]:
    """While open, the model's forward in this thread starts at `layer` with `resid` as the residual stream.

    Blocks below become stubs by an instance-level `forward`, so that the model's own code around the blocks
    still runs; `layer` itself gets `resid` as its input. After the last layer `resid` is what the final norm reads.
    """
    blocks = [model.get_submodule(paths.block) for paths in adapter.layers]

    thread = threading.get_ident()

    def stub(forward: Callable[..., Any]) -> Callable[..., Any]:
        def stubbed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return forward(hidden_states, *args, **kwargs)
            given = resid if layer == len(blocks) else hidden_states
            return (given,) if adapter.tuple_out else given

        return stubbed

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        if args:
            return (resid, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": resid}

    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.callback(restorer(block))
            block.__dict__["forward"] = stub(block.forward)
        if layer < len(blocks):
            # In front of a session's hooks on the same block, so that those see and may patch `resid`.
            handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def restorer(block: nn.Module) -> Callable[[], None]:
    """What puts a module's `forward` back as it is now."""
    if "forward" in block.__dict__:
        saved = block.__dict__["forward"]
        return lambda: block.__dict__.__setitem__("forward", saved)
    return lambda: block.__dict__.pop("forward", None) and None


def keeper(kept: dict[int, Tensor], layer: int, cut: int) -> Callable[..., None]:
    """A pre-hook that keeps the residual stream entering a block, columns from `cut` on."""
    thread = threading.get_ident()

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            kept[layer] = (args[0] if args else kwargs["hidden_states"])[:, cut:].clone()

    return keep
