"""Whether a model computes with our hooks what it computes without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editlab.hooks.mode import put_in_eval_mode

if TYPE_CHECKING:
    from editlab.lm import LM

PROMPTS = ("The capital of France is", "Water is made of hydrogen and oxygen, and")


def parity(lm: LM) -> float:
    """The largest difference of a logit between the plain transformers model and one that is read at every layer.

    Over all tokens of `PROMPTS`, padded to one length; 0 if nothing but reading goes on.
    """
    batch = lm.encode(list(PROMPTS))
    put_in_eval_mode(lm.model)
    with torch.no_grad():
        kwargs = {"position_ids": batch.position_ids} if lm.adapter.takes_position_ids else {}
        plain = lm.model(batch.ids, attention_mask=batch.mask, **kwargs).logits
        with lm.session() as s:
            s.capture("resid_post")
            hooked = s.run(batch).logits
    assert hooked is not None
    return float((plain - hooked)[batch.mask.bool()].abs().max())
