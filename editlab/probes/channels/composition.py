"""Composition scores of all pairs of heads and of all their components, from e x e cores.

Elhage et al. (2021) score how much of what head A writes lands in what head B reads:

    CS(A, B) = |OV_A M_B| / (|OV_A| |M_B|)  (Frobenius),  M_B = QK_B (mode q), QK_B^T (k) or OV_B (v).

With the components of A and B (`factors.py`) and c_ij = v_i . (B's reading direction j), w and tau their energies:

    head to head            CS(A, B)^2   = sum_ij w_i tau_j c_ij^2
    component to head       CS(A_i, B)^2 = sum_j tau_j c_ij^2
    component to component  CS(A_i, B_j) = |c_ij|

so a head's score is a mean of squared cosines weighted by energy: a channel through one of e components is diluted by
all the others, and components are looked at one by one (arXiv 2406.09519).

All c of one reading layer are one matrix product, in blocks that stay in the processor's cache. Of components the best
`top` of each reader are kept, with a histogram of those in the wrong order (`nulls.py`); heads are kept whole. So
memory is O(N^2) numbers for N heads, whatever their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from editlab.probes.channels.factors import Factors, shares
from editlab.probes.channels.nulls import Tail, robust
from editlab.probes.channels.parts import Mode
from editlab.progress import OnStep, StepInfo, silent

BLOCK = 1024  # rows of one product


@dataclass(frozen=True)
class Composition:
    """Scores of one mode; N heads. NaN on pairs of one layer.

    Attributes:
        head: (N, N) head to head, [writer, reader]; forward where the writer's layer is the lower one.
        best: (N, N) largest component to component score of each pair.
        best_at: (N, N, 2) the components that have it, the writer's and the reader's.
        top: (N, K) for each reader the largest component to head scores of earlier writers, descending; NaN-padded.
        top_at: (N, K) their writers: head index times width plus component; -1 where there is none.
        middle, spread: (N,) median and scaled median absolute deviation of those scores, for each reader.
        tail: of component to head scores in the wrong order.
        n_forward: component to head scores in the right order.
        strongest_tail: of each two heads in the wrong order the largest component to head score; empty in results that
            were saved without it.
    """

    mode: Mode
    head: np.ndarray
    best: np.ndarray
    best_at: np.ndarray
    top: np.ndarray
    top_at: np.ndarray
    middle: np.ndarray
    spread: np.ndarray
    tail: Tail = field(repr=False)
    n_forward: int
    strongest_tail: Tail = field(default_factory=Tail, repr=False)


def compose(
    several: Sequence[Factors], mode: Mode, *, top: int = 32, backward: bool = True, on_step: OnStep = silent
) -> Composition:
    """Score all pairs.

    Args:
        several: the factors at one distance between query and key or at several, over which squares are averaged.
        top: components kept for each reader.
        backward: also score pairs in the wrong order, which doubles the work and gives the null.
    """
    first = several[0]
    n, e, per_layer = first.n, first.width, first.n_heads
    of = first.s.new_full
    head, best = of((n, n), torch.nan), of((n, n), torch.nan)
    best_at = torch.full((n, n, 2), -1, dtype=torch.int32)
    kept = min(top, n * e)
    top_value, top_at = of((n, kept), torch.nan), torch.full((n, kept), -1, dtype=torch.int64)
    middle, spread = np.full(n, np.nan), np.full(n, np.nan)
    tail, strongest_tail, n_forward = Tail(), Tail(), 0
    energy = first.energy.reshape(n * e, 1)
    for layer in range(first.n_layers):
        on_step(StepInfo(f"composition {mode.upper()}", layer, first.n_layers, "layers"))
        cols = slice(layer * per_layer, (layer + 1) * per_layer)
        for is_back, rows in ((False, range(cols.start)), (True, range(cols.stop, n))):
            if not len(rows) or (is_back and not backward):
                continue
            at = slice(rows.start, rows.stop)
            sums, peaks = _tile(several, mode, rows, cols)  # (rows * e, H) squares
            whole = (sums * energy[at.start * e : at.stop * e]).unflatten(0, (-1, e)).sum(1)
            head[at, cols] = whole.sqrt()
            top_peak, writer = peaks.unflatten(0, (-1, e)).max(1)
            best[at, cols] = top_peak.sqrt()
            best_at[at, cols, 0] = writer.int().cpu()
            best_at[at, cols, 1] = _reader_of(several[0], mode, rows, cols, writer).int().cpu()
            scores = sums.sqrt_()
            if is_back:
                tail.add(scores.cpu().numpy())
                strongest_tail.add(scores.unflatten(0, (-1, e)).amax(1).cpu().numpy())
                continue
            n_forward += scores.numel()
            values, where = scores.topk(min(kept, len(scores)), dim=0)
            top_value[cols, : len(values)] = values.T
            top_at[cols, : len(where)] = where.T.cpu()
            middle[cols], spread[cols] = robust(scores.cpu().numpy())
    on_step(StepInfo(f"composition {mode.upper()}", first.n_layers, first.n_layers, "layers"))
    return Composition(
        mode,
        head.cpu().numpy(),
        best.cpu().numpy(),
        best_at.numpy(),
        top_value.cpu().numpy(),
        top_at.numpy(),
        middle,
        spread,
        tail,
        n_forward,
        strongest_tail,
    )


def component_scores(several: Sequence[Factors], mode: Mode, writer: int, reader: int) -> np.ndarray:
    """(e,) component to head scores of one pair of heads, by index."""
    sums, _ = _tile(several, mode, range(writer, writer + 1), slice(reader, reader + 1))
    return sums[:, 0].sqrt().cpu().numpy()


def cosines(factors: Factors, mode: Mode, writer: int, reader: int) -> np.ndarray:
    """(e, e) signed cosines of one pair, the writer's components by the reader's; signs are by convention."""
    return (factors.v[writer] @ factors.reads(mode)[0][reader]).cpu().numpy()


def _tile(several: Sequence[Factors], mode: Mode, rows: range, cols: slice) -> tuple[Tensor, Tensor]:
    """For writers `rows` and readers `cols`: sum_j tau_j c^2 and max_j c^2, both (rows * e, readers)."""
    e = several[0].width
    sums = peaks = several[0].s.new_zeros(())
    for factors in several:
        directions, weights = factors.reads(mode)
        reading, tau = directions[cols], shares(weights[cols])
        flat = reading.permute(1, 0, 2).flatten(1)  # (d, readers * e)
        mix = torch.block_diag(*[t[:, None] for t in tau])  # (readers * e, readers)
        writing = factors.v[rows.start : rows.stop].flatten(0, 1)  # (rows * e, d)
        pieces = list(_squares(writing, flat, mix, len(reading), e))
        sums = sums + torch.cat([a for a, _ in pieces]) / len(several)
        peaks = peaks + torch.cat([b for _, b in pieces]) / len(several)
    return sums, peaks


def _squares(writing: Tensor, flat: Tensor, mix: Tensor, readers: int, e: int) -> Iterator[tuple[Tensor, Tensor]]:
    for chunk in writing.split(BLOCK):
        c = (chunk @ flat).square_()
        yield c @ mix, c.view(-1, readers, e).amax(-1)


def _reader_of(factors: Factors, mode: Mode, rows: range, cols: slice, writer: Tensor) -> Tensor:
    """(rows, readers) the reader's component that agrees most with the writer's component `writer`."""
    directions, _ = factors.reads(mode)
    v = factors.v[rows.start : rows.stop]
    found = []
    for k, reading in enumerate(directions[cols]):
        chosen = v[torch.arange(len(v), device=v.device), writer[:, k]]  # (rows, d)
        found.append((chosen @ reading).abs().argmax(-1))
    return torch.stack(found, 1)
