"""One objective for the locate-and-edit family, solved in closed form.

Preserve what the matrix W does on ordinary keys, memorise new (key, value) pairs:

    minimise over D   tr(D M D^T) + (1/alpha) ||D K - R||_F^2

with M symmetric positive definite (the covariance C of ordinary keys), K (d_k, B) the new keys and R (d_v, B) the
wanted change of W's output on them. Its minimiser, in the dual form of size B,

    D = R (K^T M^-1 K + alpha I)^-1 K^T M^-1

is ROME for B = 1 and alpha = 0 (arXiv 2202.05262 eq. 2), EMMET for alpha = 0 (arXiv 2403.14236), and MEMIT for
M = lambda C, alpha = 1 (arXiv 2210.07229 eq. 14). Everything here is float64; M is factorised once by Cholesky
and never inverted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editlab.errors import EditFailed


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
        factor, failed = torch.linalg.cholesky_ex(m + jitter * torch.eye(len(m), dtype=m.dtype, device=m.device))
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
    """

    left: Tensor
    right: Tensor
    leverage: Tensor
    realised: float

    @property
    def dense(self) -> Tensor:
        return self.left @ self.right


def solve(keys: Tensor, residuals: Tensor, metric: Metric, alpha: float = 0.0) -> Update:
    """The update that maps each key to its residual while disturbing ordinary keys least.

    Args:
        keys: K (d_k, B). residuals: R (d_v, B).
        alpha: 0 demands D K = R exactly; above 0 it is traded against preservation.

    Raises:
        EditFailed: alpha = 0 and the keys are linearly dependent; the closest pair is named.
    """
    k, r = keys.double(), residuals.double()
    mk = metric.solve(k)  # (d_k, B) = M^-1 K
    gram = k.T @ mk  # (B, B)
    gram = (gram + gram.T) / 2
    core = gram + alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    scale = core.diagonal().clamp(min=torch.finfo(core.dtype).tiny).rsqrt()
    balanced = core * scale[:, None] * scale
    factor, failed = torch.linalg.cholesky_ex(balanced)
    if int(failed) or float(factor.diagonal().min()) ** 2 < 1e-10:
        off = balanced - torch.eye(len(balanced), dtype=core.dtype, device=core.device)
        i, j = divmod(int(off.abs().argmax()), len(off))
        raise EditFailed(
            f"The keys of requests {min(i, j)} and {max(i, j)} are linearly dependent, so both cannot be met exactly.",
            "Edit them one after the other, or merge requests that share a subject and a prefix.",
        )
    left = (torch.cholesky_solve((r * scale).T, factor) * scale[:, None]).T  # R G^-1
    update = left @ (mk.T @ k)
    realised = float(update.norm() / r.norm()) if float(r.norm()) > 0 else 1.0
    return Update(left, mk.T.contiguous(), gram.diagonal().clone(), realised)
