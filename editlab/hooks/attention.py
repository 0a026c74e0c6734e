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
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from editlab.errors import SiteUnavailable
from editlab.hooks.adapter import ModelAdapter

Offer = Callable[[int, str, Tensor], Tensor]

_NAME = "editlab_tap"
_OPEN: ContextVar[tuple[AttentionTap, ...]] = ContextVar("editlab_open_taps", default=())


class AttentionTap(AbstractContextManager["AttentionTap"]):
    """Runs `model` with an attention function that offers its inner tensors to `offer(layer, site, tensor)`."""

    def __init__(self, model: Any, adapter: ModelAdapter, offer: Offer) -> None:
        self.model, self.adapter, self.offer = model, adapter, offer
        self._stack = ExitStack()
        self._before = ""  # the attention implementation to go back to
        attn = [model.get_submodule(paths.attn) for paths in adapter.layers]
        self.layer_of = {module: i for i, module in enumerate(attn)}
        self._eager = getattr(sys.modules[type(attn[0]).__module__], "eager_attention_forward", None)

    @property
    def is_read_only(self) -> bool:
        """True where the model does not let its attention function be replaced."""
        return self._eager is None

    def check(self, site: str, layer: int) -> None:
        """Raise SiteUnavailable if `site` cannot be read in this architecture."""
        if self.is_read_only and site != "pattern":
            raise SiteUnavailable(
                f"No site '{site}' in {self.adapter.family}: its attention function cannot be replaced.",
                "Use 'pattern' (read only), 'q', 'k' or 'z'.",
            )

    def check_write(self, site: str, layer: int) -> None:
        """Raise SiteUnavailable if `site` cannot be patched in this architecture."""
        if self.is_read_only:
            raise SiteUnavailable(
                f"Site '{site}' of {self.adapter.family} can be read but not patched.",
                "Patch 'z' or 'attn_out' instead.",
            )

    def __enter__(self) -> AttentionTap:
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
        _OPEN.set(tuple(tap for tap in _OPEN.get() if tap is not self))
        self.model.set_attn_implementation(self._before)

    def _reading(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            pattern = next(
                (
                    t
                    for t in output[1:]
                    if isinstance(t, Tensor) and t.dim() == 4 and t.shape[1] == self.adapter.n_heads
                ),
                None,
            )
            if pattern is not None:
                self.offer(layer, "pattern", pattern)

        return hook

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The model's own eager attention with the session's wishes served; (B, T, H, e) and (B, H, T, S)."""
        layer = self.layer_of[module]
        assert self._eager is not None
        if mask is not None and mask.dtype == torch.float64:
            # Eager attention takes the softmax in float32, where the mask of a pad's row would be -inf everywhere.
            mask = mask.clamp(min=torch.finfo(torch.float32).min)
        offer = partial(self.offer, layer)
        q = offer("q_rot", q)
        k = offer("k_rot", k)
        out, pattern = self._eager(module, q, k, v, mask, **kwargs)
        groups = q.shape[1] // k.shape[1]
        # The eager functions drop the scores; log-probabilities are the same scores up to a constant per query,
        # so scores are rebuilt from q and k and handed on only when a hook changed them.
        scores = _scores(q, k.repeat_interleave(groups, 1), mask, kwargs)
        offered = offer("scores", scores)
        new = torch.softmax(offered, -1, dtype=torch.float32).to(q.dtype) if offered is not scores else pattern
        new = offer("pattern", new)
        if new is not pattern:
            out = (new @ v.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()
        return out, new


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
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
