"""ROME without covariance: every direction of the key counts alike, so ordinary text is not spared; not ROME.

The update with M = I in place of the covariance C, D = (v* - m) k^T / (k^T k), the smallest change of the matrix that
maps the key to the value. It is what EasyEdit's settings call ROME and R-ROME (`mom2_adjustment: false` in every file),
and is here so that published numbers of that kind can be made again, and the worth of the covariance be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editlab.edits.settings import LocateEditSettings
from editlab.edits.single import write_one
from editlab.edits.solver import Metric
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("I", "0", "one fact: D = (v* - m) k^T / (k^T k)")


class Config(LocateEditSettings):
    """Settings of `rome-nocov`; those of the statistics are of no use."""


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The smallest change that writes one fact.

    Raises:
        RequestError: not exactly one fact. EditFailed: the optimisation diverged or the keys are dependent.
    """
    identity = Metric.of(torch.eye(lm.adapter.d_mlp, dtype=torch.float64))
    return write_one(lm, "rome-nocov", facts, config, lambda layer: identity, on_step)
