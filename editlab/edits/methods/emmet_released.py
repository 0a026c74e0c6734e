"""EMMET as its released code solves it: a soft constraint, and so MEMIT with a smaller lambda.

scalable-model-editing/unified-model-editing adds emmet_lambda to the diagonal of K^T (c C)^-1 K for more than one fact.
By the shared objective that is MEMIT with lambda = emmet_lambda * c. Kept under its own name to reproduce numbers;
the equality-constrained method of the paper is `emmet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

OBJECTIVE = ("c C", "emmet_lambda", "alpha = 0 for one fact")


class Config(SeveralLayersSettings):
    """Settings of `emmet-released`; one layer unless several are named."""

    update_weight: float = Field(default=1000.0, gt=0, description="c, mom2_update_weight of the released files")
    emmet_lambda: float = Field(default=0.1, gt=0, description="added to the diagonal for more than one fact")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The change of the released code.

    Raises:
        EditFailed: the optimisation diverged.
    """

    def choose(covariance: Tensor, n: int) -> System:
        return System(Metric.of(config.update_weight * covariance), alpha=config.emmet_lambda if n > 1 else 0.0)

    return write(lm, "emmet-released", facts, config, choose, on_step)
