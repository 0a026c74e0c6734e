"""Sequential MEMIT, after ENCORE: earlier edits are kept, and the update's norm can be held back.

M = lambda C + mu I with alpha = 1, and the keys of earlier edits as further columns with nothing wanted, which is the
same as adding K_p K_p^T to M ("Lifelong Knowledge Editing requires Better Regularization", arXiv 2502.01636; the term
mu I punishes the norm of the update). mu is absolute as published (10 or 20), or relative to the mean diagonal of
lambda C; by default it is 0. The paper's early stop is `steps_on_top`. Both are on in the presets of GPT-2 XL,
Llama-2-7B and Llama-3-8B, and off in those of the models tuned here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from editlab.edits.settings import SeveralLayersSettings
from editlab.edits.several import System, write
from editlab.edits.solver import Metric
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("lambda C + mu I + K_p K_p^T", "1", "K_p: keys of earlier edits")


class Config(SeveralLayersSettings):
    """Settings of `memit-seq`."""

    lambda_rel: float = Field(default=1.0, gt=0, description="weight of the covariance, in units of the key's width")
    mu_rel: float = Field(
        default=0.0, ge=0, description="weight of the update's norm, in units of the mean diagonal of lambda C"
    )
    mu: float | None = Field(
        default=None, ge=0, description="weight of the update's norm in absolute terms instead (ENCORE: 10 or 20)"
    )


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The changes of all layers that write the facts and keep those of earlier `memit-seq` edits.

    Raises:
        EditFailed: the optimisation diverged.
    """

    def choose(covariance: Tensor, n: int) -> System:
        scaled = config.lambda_rel * len(covariance) * covariance
        mu = config.mu_rel * float(scaled.diagonal().mean()) if config.mu is None else config.mu
        return System(Metric.of(scaled + mu * torch.eye(len(scaled), dtype=scaled.dtype)), alpha=1.0)

    return write(lm, "memit-seq", facts, config, choose, on_step, remembers=True)
