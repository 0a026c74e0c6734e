"""ROME: write one fact into one MLP matrix by a rank-one update (arXiv 2202.05262), with one key throughout.

1. k: the average key at the subject's last token over contexts (eq. 3); m: the average output W k + b.
2. v* = m_0 + delta: the output that makes the model say the target (eq. 4), m_0 from the prompt itself.
3. W' = W + (v* - m) (C^-1 k)^T / (k^T C^-1 k) (eq. 2), the hard-constraint solution of the shared objective.

Deviation: the reference code uses the average key in C^-1 k but the bare prompt's key in the denominator, which can
blow the update up ("disabling edits", arXiv 2403.07175, 2406.11263); here it is one key, as in R-ROME. The two-key
original is `rome-legacy`. A prompt whose key stands apart in one of its forms (the subject is the very first token, for
one; see `targets.py`) brings a second key, and both constraints are met in one solve; such an edit has rank two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editlab.edits.preserve import preserving
from editlab.edits.record import record
from editlab.edits.settings import LocateEditSettings, edit_layer, only_fact
from editlab.edits.solver import solve
from editlab.edits.targets import forms, shifts
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


class Config(LocateEditSettings):
    """Settings of `rome`."""


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The rank-one change that writes one fact.

    Raises:
        RequestError: not exactly one fact. EditFailed: the optimisation diverged or the keys are dependent.
    """
    fact = only_fact(facts)
    layer = edit_layer(lm.adapter, config)
    metric = preserving(lm, layer, config, on_step)
    (found,) = forms(lm, [fact], layer, config, metric)
    values = shifts(lm, layer, found, config, on_step=on_step)
    keys = torch.stack([form.key for form in found], dim=1)
    residuals = torch.stack(
        [f.canonical_value + v.delta.double() - f.value for f, v in zip(found, values, strict=True)], dim=1
    )
    update = solve(keys.cpu(), residuals.cpu(), metric)
    return record(lm, "rome", config, facts, layer, update, found, values, metric)
