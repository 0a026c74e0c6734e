"""Singular components of every head, from factors: no d x d matrix is formed.

    OV_h = W_V W_O = sum_i s_i u_i v_i^T    reads u_i, writes v_i
    QK_h = W_Q R(delta) W_K^T = sum_j t_j p_j q_j^T    its queries read p_j, its keys read q_j

For a product A B with A (d, e) and B (e, d): A = Q_a R_a and B^T = Q_b R_b, then the SVD of R_a R_b^T, which is e x e,
turned by Q_a and Q_b. O(d e^2 + e^3) a head; what grouped heads share is decomposed once.

A pair (u_i, v_i) may change its sign together: the largest entry of v_i (of p_j) is made positive. Where neighbouring
singular values agree to a thousandth of the largest, single vectors mean nothing (`degenerate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.probes.channels.parts import Mode, Part
from editlab.probes.channels.weights import LayerHeads, check, layer_heads, rotations
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM

GAP = 1e-3
FLOOR = 1e-6


@dataclass(frozen=True)
class Factors:
    """All heads of a model; N heads in the order of layers, d model width, e head width. All float32 or float64.

    Attributes:
        s: (N, e) singular values of OV, descending. u: (N, d, e). v: (N, e, d).
        t: (N, e) singular values of QK. p: (N, d, e). q: (N, d, e).
        rank: dimensions of the residual stream that a norm can see, d - 1 where it centres.
        delta: the distance between query and key that QK holds for.
    """

    s: Tensor
    u: Tensor
    v: Tensor
    t: Tensor
    p: Tensor
    q: Tensor
    n_layers: int
    n_heads: int
    rank: int
    delta: int = 0

    @property
    def n(self) -> int:
        """How many heads there are."""
        return len(self.s)

    @property
    def width(self) -> int:
        """Components of a head."""
        return self.s.shape[1]

    def index(self, part: Part) -> int:
        """Where the head of `part` stands among all."""
        return part.check(self.n_layers, self.n_heads, self.width).layer * self.n_heads + part.head

    def part(self, index: int, component: int | None = None) -> Part:
        """The name of a head by its place."""
        return Part(index // self.n_heads, index % self.n_heads, component)

    def reads(self, mode: Mode) -> tuple[Tensor, Tensor]:
        """What heads read with their queries, keys or values: directions (N, d, e) and their weights (N, e)."""
        return {"q": (self.p, self.t), "k": (self.q, self.t), "v": (self.u, self.s)}[mode]

    @cached_property
    def energy(self) -> Tensor:
        """(N, e) each component's share of OV's squared norm."""
        return shares(self.s)

    @cached_property
    def degenerate_ov(self) -> Tensor:
        """(N, e) components of OV that are not determined on their own."""
        return degenerate(self.s)

    @cached_property
    def degenerate_qk(self) -> Tensor:
        """(N, e) likewise for QK."""
        return degenerate(self.t)


def shares(values: Tensor) -> Tensor:
    """Squared singular values (..., e) over their sum."""
    squares = values.square()
    return squares / squares.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def degenerate(values: Tensor) -> Tensor:
    """Which of descending singular values (..., e) agree with a neighbour, or are nothing beside the first."""
    largest = values[..., :1].clamp(min=torch.finfo(values.dtype).tiny)
    gaps = (values[..., :-1] - values[..., 1:]) / largest
    far = torch.full_like(largest, torch.inf)
    near = torch.minimum(torch.cat([far, gaps], -1), torch.cat([gaps, far], -1))
    return (near < GAP) | (values / largest < FLOOR)


def product_svd(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], middle: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of A M B^T from the QR factors of A and B: left (..., d, e), values (..., e), right (..., d, e)."""
    (qa, ra), (qb, rb) = a, b
    core = ra @ rb.mT if middle is None else ra @ middle @ rb.mT
    left, values, right = torch.linalg.svd(core)
    return qa @ left, values, qb @ right.mT


def signed(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of columns (..., d, e), the largest entry of each column of `second` made positive."""
    largest = second.gather(-2, second.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(second)
    return first * sign, second * sign


def layer_factors(heads: LayerHeads, rotation: Tensor | None = None) -> tuple[Tensor, ...]:
    """s, u, v, t, p, q of one layer, as in `Factors` with N = H."""
    group = heads.group
    values, keys = (tuple(part[group] for part in torch.linalg.qr(w)) for w in (heads.v, heads.k))
    u, s, v = product_svd(values, torch.linalg.qr(heads.o.mT))
    p, t, q = product_svd(torch.linalg.qr(heads.q), keys, rotation)
    u, v = signed(u, v)
    q, p = signed(q, p)
    return s, u, v.mT.contiguous(), t, p, q


def factorise(
    lm: LM, delta: int = 0, *, dtype: torch.dtype = torch.float32, prove: bool = True, on_step: OnStep = silent
) -> Factors:
    """The components of every head, as the weights stand now.

    Args:
        delta: distance from a key to its query, in tokens, for rotary embeddings.
        prove: first check on a small forward pass that the folded matrices are the model's own.

    Raises:
        ModelError: the heads could not be made out. SiteUnavailable: rotations cannot be measured.
    """
    n_layers = lm.adapter.n_layers
    on_step(StepInfo("decomposing heads", 0, n_layers, "layers"))
    if prove:
        check(lm)
    turns = rotations(lm, delta, dtype) if delta else [None] * n_layers
    parts: list[list[Tensor]] = [[] for _ in range(6)]
    centres = False
    for layer in range(n_layers):
        heads = layer_heads(lm, layer, dtype)
        centres = centres or heads.fold.centres
        for kept, found in zip(parts, layer_factors(heads, turns[layer]), strict=True):
            kept.append(found)
        on_step(StepInfo("decomposing heads", layer + 1, n_layers, "layers"))
    s, u, v, t, p, q = (torch.cat(kept) for kept in parts)
    rank = lm.adapter.d_model - int(centres)
    return Factors(s, u, v, t, p, q, n_layers, lm.adapter.n_heads, rank, delta)
