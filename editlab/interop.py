"""The same live model in nnsight and TransformerLens, weights shared.

Both get a structural clone of the view: their own module tree over the view's tensors, so that neither wraps or
rewrites the object that editlab edits and saves (TransformerLens rebuilds what it is given), and a copy of the
tokenizer, whose padding nnsight changes. The view knows the wrappers, and an edit or undo afterwards shows in them
at once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from editlab.errors import ModelError
from editlab.state.sharing import structural_clone

if TYPE_CHECKING:
    from editlab.lm import LM


def to_nnsight(lm: LM) -> Any:
    """An `nnsight` model over this LM's current and future weights.

    Raises:
        ModelError: nnsight is not installed.
    """
    try:
        from nnsight import TransformersModel
    except ImportError:
        raise ModelError("nnsight is not installed.", "Run: pip install 'editlab[interop]'") from None
    clone = structural_clone(lm.model)
    wrapped = TransformersModel(clone, tokenizer=copy.deepcopy(lm.tokenizer), task="text-generation")
    lm.share_with(clone)
    return wrapped


def to_bridge(lm: LM) -> Any:
    """A `transformer_lens` TransformerBridge over this LM's current and future weights.

    Its attention is eager, so logits differ from a fused forward by rounding.

    Raises:
        ModelError: transformer-lens is not installed, or does not support the family.
    """
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError:
        raise ModelError("transformer-lens is not installed.", "Run: pip install 'editlab[interop]'") from None
    clone = structural_clone(lm.model)
    config, tokenizer = clone.config, copy.deepcopy(lm.tokenizer)
    try:
        bridge = build_bridge_from_module(clone, type(clone).__name__, hf_config=config, tokenizer=tokenizer)
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"TransformerLens cannot take a {lm.adapter.family}: {error}.", "Use to_nnsight().") from None
    lm.share_with(bridge)
    return bridge


def check_shared(lm: LM, wrapped: Any) -> None:
    """Raise ModelError unless every weight matrix of the LM is one of the wrapper's, by memory."""
    root = getattr(wrapped, "_module", wrapped)
    theirs = {
        t.untyped_storage().data_ptr()
        for m in root.modules()
        for t in vars(m).values()
        if hasattr(t, "untyped_storage")
    }
    theirs |= {p.untyped_storage().data_ptr() for p in root.parameters()}
    lost = [n for n, p in lm.model.named_parameters() if p.dim() > 1 and p.untyped_storage().data_ptr() not in theirs]
    if lost:
        raise ModelError(
            f"The wrapper does not share {len(lost)} of this LM's weights ({lost[0]} first).",
            "Make it with to_nnsight() or to_bridge().",
        )
