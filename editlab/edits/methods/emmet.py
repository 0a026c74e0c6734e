"""EMMET: many facts at once under equality constraints (arXiv 2403.14236).

The shared objective with M = C and alpha = 0: D K = R exactly, at the least cost to ordinary keys. With one fact and
the same residual it is ROME. It needs independent keys, so at most as many facts as the key has dimensions; facts that
share subject and leading text fail by name, unless their targets agree. The released code softens the constraint: that
is `emmet-released`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from editlab.edits.settings import SeveralLayersSettings
from editlab.edits.several import System, write
from editlab.edits.solver import Metric
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("C", "0", "B <= d_k independent keys")


class Config(SeveralLayersSettings):
    """Settings of `emmet`; one layer unless several are named."""


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The change that meets every fact's constraint.

    Raises:
        RequestError: the facts contradict each other at one place. EditFailed: keys are dependent, or the optimisation
            diverged.
    """

    def choose(covariance: Tensor, n: int) -> System:
        return System(Metric.of(covariance), alpha=0.0)

    return write(lm, "emmet", facts, config, choose, on_step)
