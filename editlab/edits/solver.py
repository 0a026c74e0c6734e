"""One objective for the locate-and-edit family, solved in closed form.

Preserve what the matrix W does on ordinary keys, memorise new (key, value) pairs:

    minimise over D   tr(D M D^T) + (1/alpha) ||D K - R||_F^2

with M symmetric positive definite (the covariance C of ordinary keys), K (d_k, B) the new keys and R (d_v, B) the
wanted change of W's output on them. Its minimiser, in a form of size B (dual) and in one of size d_k (primal),

    D = R (K^T M^-1 K + alpha I)^-1 K^T M^-1 = R K^T (alpha M + K K^T)^-1

is, by the choice of M, alpha, and where D may act:

    ROME       M = C              alpha = 0, B = 1        arXiv 2202.05262 eq. 2
    EMMET      M = C              alpha = 0               arXiv 2403.14236
    MEMIT      M = lambda C       alpha = 1               arXiv 2210.07229 eq. 14
    AlphaEdit  M = L2 I           alpha = 1, D in the span of C's eigenvectors with small eigenvalues,
                                  earlier keys kept       arXiv 2410.02355

The smaller system is solved; alpha = 0, where the primal form does not exist, always in the dual one. Everything here
is float64; M is factorised once by Cholesky, nothing is ever inverted, and the condition of what was solved is
reported.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from scipy.linalg.lapack import dpocon
from torch import Tensor

from editlab.errors import EditFailed

WORST_CONDITION = 1e10


@dataclass(frozen=True)
class Metric:
    """The matrix M through its Cholesky factor.

    Attributes:
        factor: (d_k, d_k) lower triangular float64, factor @ factor.T = M + jitter I.
        jitter: what was added to the diagonal.
    """

    factor: Tensor
    jitter: float

    @classmethod
    def of(cls, matrix: Tensor, relative_jitter: float = 1e-6) -> Metric:
        """Factorise a symmetric positive semidefinite matrix of any scale.

        Args:
            relative_jitter: in units of the mean diagonal entry.

        Raises:
            EditFailed: the matrix is not positive definite even so.
        """
        m = matrix.to(torch.float64)
        m = (m + m.T) / 2
        jitter = relative_jitter * float(m.diagonal().mean())
        m.diagonal().add_(jitter)
        factor, failed = torch.linalg.cholesky_ex(m)
        if int(failed):
            raise EditFailed(
                f"The key covariance is not positive definite (Cholesky failed at row {int(failed)}).",
                "Collect it over more tokens (at least ten per key dimension).",
            )
        return cls(factor, jitter)

    def solve(self, columns: Tensor) -> Tensor:
        """M^-1 times the columns (d_k, n), float64."""
        return torch.cholesky_solve(columns.to(self.factor.dtype), self.factor)


@dataclass(frozen=True)
class Update:
    """A low-rank change D = left @ right of a matrix in (out, in) orientation.

    Attributes:
        left: (d_v, B) float64. right: (B, d_k) float64.
        leverage: (B,) k^T M^-1 k of each key. It averages d_k over ordinary keys when M = C.
        realised: ||D K|| / ||R||, the share of the wanted change that the update makes.
        condition: of the system that was solved (1-norm estimate; of the balanced one in the dual form).
    """

    left: Tensor
    right: Tensor
    leverage: Tensor
    realised: float
    condition: float = 1.0

    @property
    def dense(self) -> Tensor:
        return self.left @ self.right


def solve(
    keys: Tensor,
    residuals: Tensor,
    metric: Metric,
    alpha: float = 0.0,
    *,
    earlier: Tensor | None = None,
    within: Tensor | None = None,
) -> Update:
    """The update that maps each key to its residual while disturbing ordinary keys least.

    Args:
        keys: K (d_k, B). residuals: R (d_v, B).
        alpha: 0 demands D K = R exactly; above 0 it is traded against preservation.
        earlier: (d_k, n) keys whose outputs are to stay as they are, those of earlier edits. They are columns of K with
            nothing wanted: for alpha > 0 that is the same as adding their second moments, over alpha, to M.
        within: (d_k, r) orthonormal columns; D then acts in their span alone, and `metric` is (r, r) in that basis.

    Raises:
        EditFailed: the keys are too nearly dependent for what is asked; the closest pair is named.
    """
    k, r = keys.double(), residuals.double()
    n = k.shape[1]
    if earlier is not None and earlier.shape[1]:
        k = torch.cat([k, earlier.double()], 1)
        r = torch.cat([r, r.new_zeros(len(r), earlier.shape[1])], 1)
    inside = k if within is None else within.double().T @ k
    factors = _primal if alpha > 0 and inside.shape[1] >= len(inside) else _dual
    left, right, leverage, condition = factors(inside, r, metric, alpha, n)
    if within is not None:
        right = right @ within.double().T
    update = left @ (right @ keys.double())
    wanted = float(residuals.double().norm())
    return Update(left, right, leverage[:n], float(update.norm()) / wanted if wanted > 0 else 1.0, condition)


def _dual(k: Tensor, r: Tensor, metric: Metric, alpha: float, n: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """D = [R (K^T M^-1 K + alpha I)^-1] [K^T M^-1], a system as large as the number of keys."""
    mk = metric.solve(k)  # (d_k, B) = M^-1 K
    gram = k.T @ mk  # (B, B)
    gram = (gram + gram.T) / 2
    core = gram.clone()
    core.diagonal().add_(alpha)
    # Keys of very different length make a badly scaled system that is not a badly posed one.
    scale = core.diagonal().clamp(min=torch.finfo(core.dtype).tiny).rsqrt()
    balanced = core * scale[:, None] * scale
    factor, condition = _factorised(balanced)
    if condition > WORST_CONDITION:
        off = balanced.abs().fill_diagonal_(0)
        i, j = sorted(divmod(int(off.argmax()), len(off)))
        names = [f"request {x}" if x < n else f"earlier key {x - n}" for x in (i, j)]
        both = f"requests {i} and {j}" if j < n else " and ".join(names)
        raise EditFailed(
            f"The keys of {both} are linearly dependent, so both cannot be met exactly.",
            "Edit them one after the other, or merge requests that share a subject and a prefix.",
        )
    left = (torch.cholesky_solve((r * scale).T, factor) * scale[:, None]).T  # R G^-1
    return left, mk.T.contiguous(), gram.diagonal().clone(), condition


def _primal(k: Tensor, r: Tensor, metric: Metric, alpha: float, n: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """D = [R] [K^T (alpha M + K K^T)^-1], a system as large as a key; for more keys than dimensions."""
    core = alpha * (metric.factor @ metric.factor.T) + k @ k.T
    core = (core + core.T) / 2
    factor, condition = _factorised(core)
    if condition > WORST_CONDITION:
        raise EditFailed(
            f"The system of {k.shape[1]} keys is too badly conditioned ({condition:.1e}).",
            "Use a larger regularisation, or fewer facts at once.",
        )
    right = torch.cholesky_solve(k, factor).T
    leverage = (k * metric.solve(k)).sum(0)
    return r, right.contiguous(), leverage, condition


def _factorised(matrix: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor, and the 1-norm condition number estimated from it (LAPACK); infinite where there is none."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return factor, math.inf
    reciprocal, _ = dpocon(factor.cpu().numpy(), float(matrix.abs().sum(0).max()), uplo="L")
    return factor, 1 / max(reciprocal, sys.float_info.min)
