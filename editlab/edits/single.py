"""Writing one fact into one matrix: the value its prompts need, and the hard-constraint solve, in a given metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from editlab.edits.record import record
from editlab.edits.settings import LocateEditSettings, edit_layer, only_fact
from editlab.edits.solver import Metric, solve
from editlab.edits.targets import forms, shifts
from editlab.progress import OnStep
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


def write_one(
    lm: LM,
    method: str,
    facts: list[Fact],
    config: LocateEditSettings,
    preserved: Callable[[int], Metric],
    on_step: OnStep,
) -> Edit:
    """The smallest change, in the metric, that maps the fact's keys to the outputs that make the model say it.

    Args:
        preserved: the metric of a layer.

    Raises:
        RequestError: not exactly one fact. EditFailed: the optimisation diverged or the keys are dependent.
    """
    fact = only_fact(facts)
    layer = edit_layer(lm.adapter, config)
    metric = preserved(layer)
    (found,) = forms(lm, [fact], layer, config, metric)
    values = shifts(lm, layer, found, config, on_step=on_step)
    keys = torch.stack([form.key for form in found], dim=1)  # (d_k, n)
    residuals = torch.stack(
        [f.canonical_value + v.delta.double() - f.value for f, v in zip(found, values, strict=True)], dim=1
    )  # (d_v, n)
    update = solve(keys, residuals, metric)
    return record(lm, method, config, facts, layer, update, found, values, metric)
