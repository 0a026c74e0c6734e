"""Dropout is off in whatever is measured: a model computes in eval mode here, also after someone has trained it."""

from __future__ import annotations

import warnings

from torch import nn


def put_in_eval_mode(model: nn.Module) -> None:
    """Put every module of `model` into eval mode; if one was in training mode, a warning says so."""
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is None:
        return
    model.eval()
    what = f"its '{training}'" if training else "it"
    warnings.warn(
        f"The model was put back into eval mode: {what} was in training mode, in which dropout makes every pass "
        "another one.",
        stacklevel=2,
    )
