"""Where a side memory may write without being heard elsewhere: the metric in which it takes its steps.

A gradient step writes g a^T for every token a of the edit's rows, and most of a is what a token shares with ordinary
text, with the same prompt about another subject, and with the prompts of earlier edits. In the metric

    M = C + ridge I + near E[n n^T] + earlier sum of e e^T

(C second moments of ordinary text's inputs, n inputs of near neighbours, e of earlier edits' prompts) the step is
g (M^-1 a)^T instead: it answers at the edit's own tokens by what is theirs alone. That is the metric of ROME and MEMIT
(arXiv 2202.05262 eq. 2) with the keys to keep of AlphaEdit (arXiv 2410.02355), used for a gradient. In coordinates of
its Cholesky factor L, D = E L^-1, steps are plain ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editlab.edits.solver import Metric

RIDGE = 0.02  # in units of C's mean diagonal entry
NEAR = 1.0
EARLIER = 0.1  # of each token


def factor_of(covariance: Tensor, near: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """L (d_in, d_in) float32, lower triangular, L L^T = M.

    Args:
        covariance: (d_in, d_in) float64. near: (n, d_in). earlier: per edit (n, d_in).
    """
    size = len(covariance)
    m = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(size, dtype=covariance.dtype)
    if len(near):
        m += NEAR / len(near) * (near.T @ near).cpu()
    if earlier:
        kept = torch.cat(list(earlier)).cpu()
        m += EARLIER * (kept.T @ kept)
    return Metric.of(m).factor.float().to(near.device)
