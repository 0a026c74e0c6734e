"""How much the same prompt's numbers may differ between two passes of the model.

A side memory's threshold comes from a prompt's own inputs, so the prompt stands on the edge of what it answers, and
batches of another width move those inputs in their last bits.
"""

from __future__ import annotations

import torch

OF_A_FLOAT32 = 1e-5  # relative; 24 prompts of SmolLM2-135M differ by 1.7e-6 between one batch and one by one


def rounding(dtype: torch.dtype) -> float:
    """The relative difference that weights of this dtype leave open."""
    return OF_A_FLOAT32 if dtype.itemsize >= 4 else torch.finfo(dtype).eps
