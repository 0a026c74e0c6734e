"""One pair of heads: the singular directions of its virtual weight, which no head's own spectrum can blur.

OV_A M_B = U_A C R_B^T with the e x e core C = S_A V_A^T P_B T_B. The SVD of C = sum_k sigma_k a_k b_k^T gives the
directions that pass between the two: A writes along V_A S_A a_k. Turning degenerate components of A or B among
themselves does not change sigma. `rank1_share` says whether one direction carries the pair: sigma_1^2 / sum sigma^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from editlab.probes.channels.factors import Factors, shares
from editlab.probes.channels.parts import Mode


@dataclass(frozen=True)
class PairSVD:
    """The virtual weight of writer A and reader B.

    Attributes:
        values: (e,) sigma, descending, over |OV_A| |M_B|; their root sum of squares is the composition score.
        written: (e, d) unit directions in which A writes what B reads, strongest first.
        read: (e, d) unit directions in which B reads it.
    """

    values: Tensor
    written: Tensor
    read: Tensor

    @property
    def score(self) -> float:
        """CS(A, B)."""
        return float(self.values.norm())

    @property
    def rank1_share(self) -> float:
        """The share of the strongest direction."""
        return float(shares(self.values)[0])

    @property
    def participation(self) -> float:
        """(sum sigma^2)^2 / sum sigma^4: how many directions count."""
        energy = shares(self.values)
        return float(1 / energy.square().sum())


def pair_svd(factors: Factors, mode: Mode, writer: int, reader: int) -> PairSVD:
    """The pair of heads by index."""
    directions, weights = factors.reads(mode)
    s, t = (x / x.norm() for x in (factors.s[writer], weights[reader]))
    v, p = factors.v[writer], directions[reader]  # (e, d), (d, e)
    a, values, bh = torch.linalg.svd(s[:, None] * (v @ p) * t)
    written, read = (a.mT * s) @ v, (bh * t) @ p.mT
    return PairSVD(values, *(x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30) for x in (written, read)))


def rank1_shares(factors: Factors, mode: Mode, writers: np.ndarray, readers: np.ndarray) -> np.ndarray:
    """(n,) of several pairs at once."""
    if not len(writers):
        return np.zeros(0)
    directions, weights = factors.reads(mode)
    a, b = torch.tensor(writers), torch.tensor(readers)
    core = factors.s[a, :, None] * (factors.v[a] @ directions[b]) * weights[b, None, :]
    return shares(torch.linalg.svdvals(core))[:, 0].cpu().numpy()


def projection_kernel(factors: Factors, mode: Mode, writer: int, reader: int) -> float:
    """|V_A P_B|^2: how much the spaces that A writes and B reads have in common, whatever the singular values.

    Expected e^2 / d for random spaces. From "Measuring Affinity between Attention-Head Weight Subspaces via the
    Projection Kernel" (arXiv 2601.10266); does not depend on rotary embedding.
    """
    return float((factors.v[writer] @ factors.reads(mode)[0][reader]).square().sum())
