"""AlphaEdit: updates that live where ordinary keys hardly reach (arXiv 2410.02355).

1. C = U Lambda U^T; U_lo are the eigenvectors with an eigenvalue below a threshold.
2. The shared objective with M = L2 I and alpha = 1, D = D' U_lo^T, and the keys of earlier AlphaEdit edits kept. It
   equals the published D = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1 with P = U_lo U_lo^T, in a symmetric form of the
   size of the subspace or of the number of keys.

What lies outside the span is untouched exactly; what ordinary text loses is bounded by the threshold, tr(D C D^T) <=
tau ||D||^2. The published threshold is absolute, in squared activations, and does not transfer between models: the
default here is relative to tr(C). A small model has no true null space, only directions of low variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from editlab.edits.settings import SeveralLayersSettings
from editlab.edits.several import System, write
from editlab.edits.solver import Metric
from editlab.errors import EditFailed
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("L2 I + K_p K_p^T", "1", "D = D U_lo^T: only where C has small eigenvalues")


class Config(SeveralLayersSettings):
    """Settings of `alphaedit`."""

    tau_rel: float = Field(default=1e-3, gt=0, description="eigenvalues below this share of tr(C) may be written to")
    tau: float | None = Field(
        default=None, gt=0, description="absolute threshold instead, as published (paper 0.01, code 0.02)"
    )
    l2: float = Field(default=1.0, gt=0, description="weight of the update's norm (paper 1, code 10)")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The changes of all layers, in the span that is left to them, that write the facts and keep earlier ones.

    Raises:
        EditFailed: the threshold leaves nothing to write to.
    """

    def choose(covariance: Tensor, n: int) -> System:
        limit = config.tau if config.tau is not None else config.tau_rel * float(covariance.trace())
        basis = low_span(covariance, limit)
        kept = basis.shape[1]
        metric = Metric.of(config.l2 * torch.eye(kept, dtype=torch.float64), 0.0)
        return System(metric, 1.0, basis, {"directions": [kept, len(covariance)], "threshold": limit})

    return write(lm, "alphaedit", facts, config, choose, on_step, remembers=True)


def low_span(covariance: Tensor, limit: float) -> Tensor:
    """(d_k, r) eigenvectors of C with eigenvalues below `limit`.

    Raises:
        EditFailed: there is none.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    basis = vectors[:, values < limit]
    if basis.shape[1] == 0:
        raise EditFailed(
            f"No direction of the keys has a second moment below {limit:.3g} (the smallest is {float(values[0]):.3g}).",
            "Raise tau_rel or tau.",
        )
    return basis
