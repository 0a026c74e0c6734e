"""MEMIT: many facts at once, spread over several MLP matrices (arXiv 2210.07229).

The shared objective with M = lambda C and alpha = 1 (eq. 14): each layer trades what is wanted of the new keys against
what ordinary keys lose. lambda is given relative to the key's width, lambda = lambda_rel d_mlp, because the leverage
k^T C^-1 k averages d_mlp over ordinary keys: published values are 0.9 to 3.5 once rescaled, while the raw 15,000 would
realise a fifth of an edit on a small model.
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

OBJECTIVE = ("lambda C", "1", "several layers in turn, R = (Z - H) / (layers left)")


class Config(SeveralLayersSettings):
    """Settings of `memit`."""

    lambda_rel: float = Field(
        default=1.0, gt=0, description="weight of the covariance, in units of the key's width (published: 0.9 to 3.5)"
    )


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The changes of all layers that write the facts.

    Raises:
        EditFailed: the optimisation diverged.
    """

    def choose(covariance: Tensor, n: int) -> System:
        return System(Metric.of(config.lambda_rel * len(covariance) * covariance), alpha=1.0)

    return write(lm, "memit", facts, config, choose, on_step)
