"""The attention tap: queries and keys after rotary embedding, scores, and the attention pattern.

These never pass by a module. transformers lets a model's attention function be replaced by name
(`AttentionInterface`); while a tap is open the model runs ours, which

1. offers q and k to the session;
2. calls the model file's own eager function, so that scaling, soft-caps, sinks and masks are the model's;
3. offers scores and pattern, and recomputes `pattern @ v` when a hook changed them.

The tap computes eagerly: compare a patched run only with a baseline under the same tap (eager and fused
attention differ by rounding, in bf16 by whole logits). Falcon, BLOOM and, in older transformers, GPT-J do not use
the interface: there the pattern is taken from the attention module's second output and cannot be patched.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from editlab.errors import SiteUnavailable
from editlab.hooks.adapter import ModelAdapter

Offer = Callable[[int, str, Tensor], Tensor]
Eager = Callable[..., tuple[Tensor, Tensor]]

_NAME = "editlab_tap"
_OPEN: ContextVar[tuple[AttentionSwitch, ...]] = ContextVar("editlab_open_taps", default=())


class AttentionSwitch(AbstractContextManager[Any]):
    """While open, `model` computes attention by `attend` of this object, eagerly.

    Attributes:
        layer_of: which layer an attention module belongs to.
    """

    def __init__(self, model: Any, attention: Sequence[str]) -> None:
        self.model = model
        self._stack = ExitStack()
        self._before = ""  # the attention implementation to go back to
        modules = [model.get_submodule(path) for path in attention]
        self.layer_of = {module: i for i, module in enumerate(modules)}
        self.eager: Eager | None = getattr(sys.modules[type(modules[0]).__module__], "eager_attention_forward", None)

    @property
    def is_read_only(self) -> bool:
        """True where the model does not let its attention function be replaced."""
        return self.eager is None

    def __enter__(self) -> Self:
        config = self.model.config
        before = config._attn_implementation
        with ExitStack() as stack:
            if self.is_read_only:
                # Falcon refuses `set_attn_implementation`; its code reads the config at each call.
                stack.callback(setattr, config, "_attn_implementation", before)
                config._attn_implementation = "eager"
                stack.callback(
                    self.model.register_forward_pre_hook(
                        lambda m, args, kwargs: (args, {**kwargs, "output_attentions": True}), with_kwargs=True
                    ).remove
                )
                for module, layer in self.layer_of.items():
                    stack.callback(module.register_forward_hook(self._reading(layer)).remove)
            else:
                self._before = before
                stack.callback(self._close)
                _OPEN.set((self, *_OPEN.get()))
                self.model.set_attn_implementation(_known_to_transformers())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _close(self) -> None:
        _OPEN.set(tuple(switch for switch in _OPEN.get() if switch is not self))
        self.model.set_attn_implementation(self._before)

    def _reading(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            weights = [t for t in output[1:] if isinstance(t, Tensor) and t.dim() == 4] if output else []
            if weights:
                self.read(layer, weights)

        return hook

    def read(self, layer: int, weights: list[Tensor]) -> None:
        """What may be the pattern, among the outputs of an attention module whose function cannot be replaced."""

    @abstractmethod
    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the attention function gives: (B, T, H, e) and (B, H, T, S)."""


class AttentionTap(AttentionSwitch):
    """Runs `model` with an attention function that offers its inner tensors to `offer(layer, site, tensor)`."""

    def __init__(self, model: Any, adapter: ModelAdapter, offer: Offer) -> None:
        super().__init__(model, [paths.attn for paths in adapter.layers])
        self.adapter, self.offer = adapter, offer

    def check(self, site: str, layer: int) -> None:
        """Raise SiteUnavailable if `site` cannot be read in this architecture."""
        if self.is_read_only and site != "pattern":
            raise SiteUnavailable(
                f"No site '{site}' in {self.adapter.family}: its attention function cannot be replaced.",
                "Use 'pattern' (read only), 'q', 'k' or 'z'.",
            )

    def check_write(self, site: str, layer: int) -> None:
        """Raise SiteUnavailable if `site` cannot be patched in this architecture."""
        paths = self.adapter.layers[layer]
        reason = "its attention function cannot be replaced" if self.is_read_only else paths.pattern_fixed
        if not reason and site == "scores":
            reason = paths.scores_fixed
        if reason:
            raise SiteUnavailable(
                f"Site '{site}' of {self.adapter.family} can be read but not patched: {reason}.",
                "Patch 'attn_out' instead." if paths.no_heads else "Patch 'z' or 'attn_out' instead.",
            )

    def read(self, layer: int, weights: list[Tensor]) -> None:
        pattern = next((t for t in weights if t.shape[1] == self.adapter.n_heads), None)
        if pattern is not None:
            self.offer(layer, "pattern", pattern)

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The model's own eager attention with the session's wishes served."""
        layer = self.layer_of[module]
        offer = partial(self.offer, layer)
        mask = finite(mask)
        q = offer("q_rot", q)
        k = offer("k_rot", k)
        assert self.eager is not None
        out, weights = self.eager(module, q, k, v, mask, **kwargs)
        groups = q.shape[1] // k.shape[1]
        # The eager functions drop the scores; log-probabilities are the same scores up to a constant per query,
        # so scores are rebuilt from q and k and handed on only when a hook changed them.
        scores = scores_of(q, k.repeat_interleave(groups, 1), mask, kwargs)
        values = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        pattern = effective(out, weights, values) if self.adapter.has_sinks else weights
        offered = offer("scores", scores)
        new = self._pattern_of(offered, scores, pattern) if offered is not scores else pattern
        new = offer("pattern", new)
        if new is not pattern:
            out = (new @ values).transpose(1, 2).contiguous()
        return out, weights if new is pattern else new

    def _pattern_of(self, offered: Tensor, scores: Tensor, pattern: Tensor) -> Tensor:
        """The pattern of changed scores; a sink keeps its own score."""
        new = torch.softmax(offered, -1, dtype=torch.float32).to(pattern.dtype)
        if not self.adapter.has_sinks:
            return new
        mass = (offered.float().logsumexp(-1) - sink_of(scores, pattern)).sigmoid()
        return new * mass[..., None].to(new)


def finite(mask: Tensor | None) -> Tensor | None:
    """Eager attention takes the softmax in float32, where a float64 mask of a pad's row would be -inf everywhere."""
    is_double = mask is not None and mask.dtype == torch.float64
    return mask.clamp(min=torch.finfo(torch.float32).min) if mask is not None and is_double else mask


def effective(out: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """The weights (B, H, T, S) with which a head's output (B, T, H, e) is the sum of the values (B, H, S, e).

    Where a sink takes its share after the softmax, the output is the weighted sum times a number for each query.
    """
    plain = weights @ values
    gain = (out.transpose(1, 2) * plain).sum(-1, keepdim=True) / plain.square().sum(-1, keepdim=True).clamp(min=1e-30)
    return weights * gain


def sink_of(scores: Tensor, pattern: Tensor) -> Tensor:
    """(B, H, T) the score of a sink, from the share of the softmax that the pattern's rows lack; -inf without one."""
    kept = pattern.float().sum(-1)
    return scores.float().logsumexp(-1) + ((1 - kept).clamp(min=0) / kept.clamp(min=1e-30)).log()


def scores_of(q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    """(B, H, T, S) what the softmax reads, from queries and repeated keys."""
    scaling = kwargs.get("scaling")
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    softcap = kwargs.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores if mask is None else scores + mask[..., : k.shape[-2]]


def _tapped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    tap = next((tap for tap in _OPEN.get() if module in tap.layer_of), None)
    if tap is None:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, **kwargs)
    return tap.attend(module, query, key, value, attention_mask, **kwargs)


@cache
def _known_to_transformers() -> str:
    """The name under which transformers has the tap; only now, because importing what it takes is two seconds' work."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _tapped)
    AttentionMaskInterface.register(_NAME, eager_mask)
    return _NAME
