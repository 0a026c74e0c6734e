"""The key-value cache by both of its names: transformers 5.24 calls `cache` what was `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_NAMES = ("cache", "past_key_values")


def cache_given(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward pass; None if there is none."""
    return next((kwargs[name] for name in _NAMES if kwargs.get(name) is not None), None)


def cache_made(output: Any) -> Any:
    """The cache that a forward pass returned; None if it returned none."""
    # Where the new name is known, the old one answers too, with a warning.
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def as_argument(model: nn.Module, past: Any) -> dict[str, Any]:
    """What hands the cache `past` to the model's forward; nothing where there is none."""
    if past is None:
        return {}
    parameters = inspect.signature(model.forward).parameters
    return {next((name for name in _NAMES if name in parameters), "past_key_values"): past}
