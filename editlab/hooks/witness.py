"""What a model's attention does, seen from inside: queries, keys, values and outputs, and whether heads are heads.

A first pass records what every attention module is called with and what its attention function reads and gives. Then

1. `heads` (separability): the attention module alone runs again, with the function's output disturbed in some heads,
   other ones at each token: those whose number has a bit set, or clear. What the output projection reads may move in
   exactly those heads. 2 log2 H tokens settle it for all heads. Whatever a model does between attention and projection
   head by head (gates, norms of each head, a sink's share) passes; what mixes heads (a norm across them, differences
   of them) does not.
2. `pattern`: a head's output is one number per query times the pattern-weighted sum of the values. Then the pattern
   can be written, and writing back what was read changes nothing.
3. `scores`: the pattern is the softmax of the scores, beside a sink whose own score is one number per head.

A model whose attention function cannot be replaced is held to the strict test instead: z of a head is its pattern times
its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from editlab.hooks.attention import AttentionSwitch, effective, finite, scores_of, sink_of
from editlab.hooks.kv_cache import cache_made

MOVED = 1e-3  # relative to the disturbance: a head moves if it changes by more
THROUGH_SOFTMAX = 1e-4  # in float32, in which transformers computes every softmax
HALF = 3e-2


@dataclass
class Seen:
    """One layer's attention on the probe; None for what did not show.

    Attributes:
        q: (B, H, T, e). k, v: (B, K, T, e). out: (B, T, H, e). weights, scores: (B, H, T, T). z: (B, T, features).
        first: outputs of the projections that attention begins with, by path, each (B, T, features).
        calls: how often the attention function was called.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    out: Tensor | None = None
    weights: Tensor | None = None
    scores: Tensor | None = None
    z: Tensor | None = None
    first: dict[str, Tensor] = field(default_factory=dict)
    calls: int = 0


@dataclass(frozen=True)
class Verdict:
    """What is proved of one layer; each an empty text or the reason why it is not."""

    heads: str = ""
    pattern: str = ""
    scores: str = ""
    has_sink: bool = False


@dataclass(frozen=True)
class AttentionPaths:
    """Where a layer's attention is: the module, its output projection, the projections that it begins with."""

    module: str
    o: str
    firsts: tuple[str, ...]


class Witness(AttentionSwitch):
    """Runs the model with an attention function that records, and disturbs outputs where it is told to."""

    def __init__(self, model: Any, layers: Sequence[AttentionPaths]) -> None:
        super().__init__(model, [paths.module for paths in layers])
        self.paths = list(layers)
        self.seen = [Seen() for _ in layers]
        self.calls: list[tuple[Any, dict[str, Any]] | None] = [None] * len(layers)
        self.added: Tensor | None = None  # (B, T, H, 1), what part of itself to add to the output
        self.is_recording = True

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The model's own, seen and perhaps disturbed."""
        assert self.eager is not None
        mask = finite(mask)
        out, weights = self.eager(module, q, k, v, mask, **kwargs)
        if self.is_recording:
            seen = self.seen[self.layer_of[module]]
            seen.calls += 1
            seen.q, seen.k, seen.v, seen.out, seen.weights = q, k, v, out.clone(), weights
            if q.shape[1] % k.shape[1] == 0:
                seen.scores = scores_of(q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), mask, kwargs)
        elif self.added is not None and self.added.shape[:3] == out.shape[:3]:
            size = out.float().square().mean().sqrt().clamp(min=1e-6)
            noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out) * size.to(out)
            out = out + self.added.to(out) * noise
        return out, weights

    def read(self, layer: int, weights: list[Tensor]) -> None:
        self.seen[layer].weights = weights[0]

    def record(self, ids: Tensor) -> None:
        """One pass of the model, everything kept."""
        with self, ExitStack() as stack, torch.no_grad():
            for i, paths in enumerate(self.paths):
                attention, o = (self.model.get_submodule(path) for path in (paths.module, paths.o))
                stack.callback(attention.register_forward_pre_hook(self._called(i), with_kwargs=True).remove)
                stack.callback(o.register_forward_pre_hook(self._projected(i)).remove)
                for path in paths.firsts:
                    hook = self.model.get_submodule(path).register_forward_hook(self._begun(i, path))
                    stack.callback(hook.remove)
            cached = cache_made(self.model(ids, use_cache=self.is_read_only))
        for seen, entry in zip(self.seen, getattr(cached, "layers", ()), strict=False):
            seen.k, seen.v = getattr(entry, "keys", None), getattr(entry, "values", None)
        self.is_recording = False

    def _called(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.calls[layer] = (args, dict(kwargs))

        return hook

    def _projected(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.seen[layer].z = args[0].clone()

        return hook

    def _begun(self, layer: int, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.seen[layer].first[path] = output.clone()

        return hook

    def judge(self, layer: int, n_heads: int) -> Verdict:
        """What is proved of a layer's heads, pattern and scores."""
        seen = self.seen[layer]
        if self.is_read_only or not seen.calls:
            return Verdict(heads=_strict(seen, n_heads))
        reason = self._separable(layer, n_heads)
        if seen.calls > 1:
            fixed = "attention is computed in several calls of its function"
            return Verdict(reason, fixed, fixed)
        if seen.out is None or seen.weights is None or seen.v is None:
            fixed = "its attention function gives no pattern"
            return Verdict(reason, fixed, fixed)
        values = seen.v.repeat_interleave(max(1, n_heads // seen.v.shape[1]), 1)
        shape = (*seen.weights.shape[:3], values.shape[-1])
        is_sum = values.shape[:2] == seen.weights.shape[:2] and tuple(seen.out.transpose(1, 2).shape) == shape
        pattern = effective(seen.out, seen.weights, values) if is_sum else seen.weights
        if not is_sum or _error(pattern @ values, seen.out.transpose(1, 2)) > _limit(seen.out):
            fixed = "a head's output is not the sum of the values that its pattern weighs"
            return Verdict(reason, fixed, fixed)
        rows = pattern.float().sum(-1)
        has_sink = bool(((rows - 1).abs() > _limit(seen.out)).any())
        return Verdict(reason, "", _softmax(seen.scores, pattern, has_sink), has_sink)

    def _separable(self, layer: int, n_heads: int) -> str:
        """Reruns the attention module with outputs disturbed in known heads; see the module's text."""
        seen, call = self.seen[layer], self.calls[layer]
        assert seen.out is not None and call is not None
        if seen.z is None or seen.z.dim() != 3 or seen.z.shape[-1] % n_heads or seen.out.shape[2] != n_heads:
            return "what its output projection reads is not as wide as its heads"
        tokens = seen.z.shape[0] * seen.z.shape[1]
        sets = _subsets(n_heads)
        moved = torch.zeros(n_heads, dtype=torch.bool)
        o = self.model.get_submodule(self.paths[layer].o)
        module = self.model.get_submodule(self.paths[layer].module)
        for start in range(0, len(sets), tokens):
            chosen = torch.stack([sets[min(start + i, len(sets) - 1)] for i in range(tokens)])  # (tokens, H)
            self.added = chosen.view(*seen.z.shape[:2], n_heads, 1).to(seen.z.device)
            again: list[Tensor] = []
            handle = o.register_forward_pre_hook(lambda m, args, into=again: into.append(args[0].clone()))
            try:
                with self, torch.no_grad():
                    module(*call[0], **call[1])
            finally:
                handle.remove()
                self.added = None
            change = (again[-1] - seen.z).unflatten(-1, (n_heads, -1)).float().norm(dim=-1).flatten(0, 1).cpu()
            # Each token beside what moved most there: a gate may be nearly closed at another.
            is_moved = change > MOVED * change.amax(1, keepdim=True).clamp(min=1e-12)
            if bool((is_moved & ~chosen).any()):
                return "what one head attends to reaches what another one writes (such as by a norm across heads)"
            moved |= (is_moved & chosen).any(0)
        return "" if bool(moved.all()) else "what its output projection reads does not follow what its heads attend to"


def _subsets(n_heads: int) -> list[Tensor]:
    """(H,) bool each: for every bit of the heads' numbers, those that have it, and those that do not."""
    numbers = torch.arange(n_heads)
    bits = [(numbers >> bit & 1).bool() for bit in range(max(1, (n_heads - 1).bit_length()))]
    return [part for bit in bits for part in (bit, ~bit) if bool(part.any())]


def _strict(seen: Seen, n_heads: int) -> str:
    """Whether z of each head is its pattern times its values."""
    z, weights, v = seen.z, seen.weights, seen.v
    if z is None or weights is None or v is None or v.dim() != 4 or weights.shape[1] != n_heads:
        return "its attention function can neither be replaced nor gives a pattern, so that nothing proves them"
    if z.dim() != 3 or n_heads % v.shape[1] or weights.shape[-1] != v.shape[2] or z.shape[-1] != n_heads * v.shape[-1]:
        return "what its output projection reads is not as wide as its heads"
    made = (weights.to(v) @ v.repeat_interleave(n_heads // v.shape[1], 1)).transpose(1, 2)
    if _error(made, z.unflatten(-1, (n_heads, -1))) > _limit(z):
        return "what a head writes is not the sum of the values that its pattern weighs"
    return ""


def _softmax(scores: Tensor | None, pattern: Tensor, has_sink: bool) -> str:
    """Whether the pattern is the softmax of the scores, beside a sink with one score per head."""
    fixed = "its pattern is not the softmax of its scores"
    if scores is None or scores.shape != pattern.shape:
        return fixed
    plain = scores.float().softmax(-1)
    if not has_sink:
        return "" if _error(plain, pattern) <= _limit(pattern) else fixed
    sink = sink_of(scores, pattern)  # (B, H, T)
    middle = sink.median(-1, keepdim=True).values.median(0, keepdim=True).values
    again = plain * (scores.float().logsumexp(-1) - middle).sigmoid()[..., None]
    return "" if _error(again, pattern) <= _limit(pattern) else fixed


def _limit(x: Tensor) -> float:
    return THROUGH_SOFTMAX if x.dtype in (torch.float32, torch.float64) else HALF


def _error(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value; NaN and infinity count as infinite."""
    error = float((a.float() - b.float()).abs().amax() / b.float().abs().amax().clamp(min=1e-30))
    return error if error == error else float("inf")


def matched(outputs: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Outputs (B, T, features) of as many rows and tokens as `like` (B, heads, T, e)."""
    return {n: x for n, x in outputs.items() if x.dim() == 3 and (x.shape[0], x.shape[1]) == like.shape[::2][:2]}
