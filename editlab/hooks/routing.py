"""Routed layers: a linear map whose output is changed for some sequences and left alone for others.

A side memory decides once per sequence, from the prompt, and keeps to it for every token after that:

1. A forward pass without earlier tokens is a prompt. The layer sees the inputs of all its tokens, decides row by row,
   and the decision is attached to the KV cache.
2. A pass on top of a cache is the sequence going on: the decision is read back. Where the cache has been cut to within
   the prompt (a causal cone), what was seen of the columns that remain is put together with the new ones.
3. Tokens that are no prompt, such as an answer that is being scored, are named by `prompt_ends`; nothing decides on
   them. A prompt given to a model in several passes is decided on in the first.

The layer replaces its module's `forward` on the instance, so hooks of sessions see the routed output as the module's,
and module paths, `state_dict` and ties are as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from editlab.hooks.kv_cache import cache_given, cache_made

_ATTRIBUTE = "editlab_routes"  # of a KV cache: decisions by module path

# For the rows of the passes in a `prompt_ends` block: the first column that is no prompt.
_ENDS: ContextVar[Tensor | None] = ContextVar("editlab_prompt_ends", default=None)


@contextmanager
def prompt_ends(columns: Tensor | None) -> Iterator[None]:
    """While open, only columns before these (B,), in the padded frame, count as prompt; None: all do."""
    token = _ENDS.set(columns)
    try:
        yield
    finally:
        _ENDS.reset(token)


@dataclass(frozen=True)
class Decision:
    """What a layer decided about the rows of a batch.

    Attributes:
        prompt: (B, T) bool, the tokens it rests on. parts: what the layer keeps of each token, each (B, T, ...).
        chosen: (B,) int64, the bank of each row, -1 for none. scores: (B, n) the indicator of every bank.
    """

    prompt: Tensor
    parts: tuple[Tensor, ...]
    chosen: Tensor
    scores: Tensor

    @property
    def width(self) -> int:
        return self.prompt.shape[1]

    def rows(self, index: Tensor) -> Decision:
        """Of the rows at `index`."""
        return Decision(self.prompt[index], tuple(p[index] for p in self.parts), self.chosen[index], self.scores[index])


class Routed(Protocol):
    """A side memory at one linear module."""

    def look(self, x: Tensor, y: Tensor, *, exact: bool) -> tuple[Tensor, ...]:
        """What is needed of each token, each (B, n, ...), from the module's input (B, n, d_in) and plain output.

        Unless `exact`, scores that do not bear on the decision may be left out of it.
        """

    def decide(self, prompt: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`chosen` and `scores` of a `Decision`."""

    def change(self, x: Tensor, y: Tensor, chosen: Tensor, ends: Tensor | None) -> Tensor:
        """The output: `y` itself, bit for bit, in rows where nothing was chosen.

        `ends` has the column of each row's last prompt token in this pass, None in a pass that goes on.
        """

    def name(self, bank: int) -> str:
        """What to call a bank."""

    def margin(self, scores: Tensor) -> Tensor:
        """(n,) from the scores of a row: how far each bank is beyond its threshold; above 1 it may answer."""

    def why(self, scores: Tensor, chosen: int) -> str:
        """The decision about a row in a sentence."""


@dataclass
class _Call:
    """One forward pass of the model."""

    mask: Tensor | None
    past: int
    cache: Any
    ends: Tensor | None
    made: dict[str, Decision] = field(default_factory=dict)


class Routes:
    """The routed layers of one model, by the path of their module.

    Attributes:
        layers: what is installed. digest: identifies it; empty when nothing is.
        last: decisions of the latest prompt, by path.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._local = threading.local()
        self.layers: dict[str, Routed] = {}
        self.digest = ""
        self.last: dict[str, Decision] = {}

    @contextmanager
    def off(self, path: str) -> Iterator[None]:
        """While open, the module at `path` runs as if nothing were routed there, in this thread."""
        before = self._silent
        self._local.silent = before | {path}
        try:
            yield
        finally:
            self._local.silent = before

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """While open, the scores of all banks are computed, in this thread, and not only those that decide."""
        before = self._exact
        self._local.exact = True
        try:
            yield
        finally:
            self._local.exact = before

    @property
    def is_free(self) -> bool:
        """Whether every layer answers by its own decision: none is off in this thread, none is forced."""
        return not self._silent and all(getattr(layer, "force", "auto") == "auto" for layer in self.layers.values())

    @property
    def _exact(self) -> bool:
        return getattr(self._local, "exact", False)

    @property
    def _silent(self) -> frozenset[str]:
        return getattr(self._local, "silent", frozenset())

    def set(self, layers: Mapping[str, Routed], digest: str) -> None:
        """Install these layers and no others."""
        for path in self.layers:
            vars(self._model.get_submodule(path)).pop("forward", None)
        for handle in self._handles:
            handle.remove()
        self.layers, self.digest, self._handles, self.last = dict(layers), digest, [], {}
        for path in self.layers:
            module = self._model.get_submodule(path)
            module.forward = self._forward(path, module.forward)
        if self.layers:
            self._handles = [
                self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
                self._model.register_forward_hook(self._end, always_call=True),
            ]

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = cache_given(kwargs)
        past = int(cache.get_seq_length()) if cache is not None else 0
        self._local.call = _Call(kwargs.get("attention_mask"), past, cache, _ENDS.get())

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._local.call
        self._local.call = None
        made = cache_made(output)
        if call is not None and call.cache is None and made is not None and call.made:
            setattr(made, _ATTRIBUTE, dict(call.made))

    def _forward(self, path: str, plain: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            y = plain(x)
            call = getattr(self._local, "call", None)
            if call is None or path in self._silent:
                return y  # (without a call the module was run by itself)
            rows = None if x.dim() == 3 else self._rows(call, x)  # OPT's MLP sees (B * T, features)
            if rows is None:
                return self._routed(path, call, x, y)
            return self._routed(path, call, x.unflatten(0, rows), y.unflatten(0, rows)).flatten(0, 1)

        return forward

    @staticmethod
    def _rows(call: _Call, x: Tensor) -> tuple[int, int]:
        n = call.mask.shape[0] if call.mask is not None else 1
        return n, x.shape[0] // n

    def _routed(self, path: str, call: _Call, x: Tensor, y: Tensor) -> Tensor:
        layer = self.layers[path]
        known = getattr(call.cache, _ATTRIBUTE, {}).get(path) if call.past else None
        if known is not None and call.past >= known.width:
            return layer.change(x, y, known.chosen, None)
        prompt = _prompt(call, x)
        parts = layer.look(x, y, exact=self._exact)
        if known is not None:
            parts = tuple(torch.cat([old[:, : call.past], new], 1) for old, new in zip(known.parts, parts, strict=True))
            whole = torch.cat([known.prompt[:, : call.past], prompt], 1)
        else:
            whole = prompt
        chosen, scores = layer.decide(whole, parts)
        decision = Decision(whole, parts, chosen, scores)
        self.last = {**self.last, path: decision}
        call.made[path] = decision
        if call.cache is not None:
            # A cache may share its attributes with the one that it was copied from.
            setattr(call.cache, _ATTRIBUTE, {**getattr(call.cache, _ATTRIBUTE, {}), path: decision})
        columns = torch.arange(prompt.shape[1], device=prompt.device)
        return layer.change(x, y, chosen, torch.where(prompt, columns, -1).amax(1))


def _prompt(call: _Call, x: Tensor) -> Tensor:
    """(B, n) the tokens of this pass that are attended to and belong to the prompt."""
    rows, n = x.shape[0], x.shape[1]
    mask = call.mask
    real = torch.ones(rows, n, dtype=torch.bool, device=x.device)
    if mask is not None and mask.dim() == 2:
        real = mask[:, -n:].bool()
    if call.ends is None:
        return real
    # Beams repeat each row.
    ends = call.ends.to(x.device).repeat_interleave(rows // len(call.ends))
    return real & (call.past + torch.arange(n, device=x.device) < ends[:, None])


def decisions_of(cache: Any) -> dict[str, Decision]:
    """The decisions that hang on a cache, by path."""
    return getattr(cache, _ATTRIBUTE, {})


def select_rows(cache: Any, index: Tensor) -> None:
    """Let the decisions on a cache follow a selection of its rows."""
    known = getattr(cache, _ATTRIBUTE, {})
    if known:
        setattr(cache, _ATTRIBUTE, {path: decision.rows(index) for path, decision in known.items()})
