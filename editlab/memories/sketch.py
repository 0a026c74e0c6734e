"""A limit of what a change can add, from a few of its directions.

With the singular values s of D, and r of them kept,

    ||D x||^2 = sum_i s_i^2 (v_i x)^2  <=  sum_{i<=r} (s_i^2 - s_{r+1}^2) (v_i x)^2  +  s_{r+1}^2 ||x||^2,

since the directions that are left out add at most s_{r+1} times the rest of x. A bank whose limit stays below its
threshold need not be multiplied to know that it is silent. One edit's change is nearly of low rank, so few banks are
left; the answer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 32
MOST_ROWS = 1024  # of a change; finding the directions of more takes too long
SLACK = 1 + 1e-4  # over the rounding of float32


@dataclass(frozen=True)
class Sketch:
    """Of one change: `rows` (r, d_in) are the kept directions, scaled; `rest` is s_{r+1}."""

    rows: Tensor
    rest: float

    @classmethod
    def of(cls, values: Tensor) -> Sketch | None:
        """Of the rows (n, d_in) of a change that are not zero; None where it would not pay."""
        if not 2 * RANK <= len(values) <= MOST_ROWS:
            return None
        exact = values.double()
        # Eigenvectors of the small Gram matrix, largest last: D's left singular vectors.
        squares, left = torch.linalg.eigh(exact @ exact.T)
        squares, left = squares.clamp(min=0).flip(0), left.flip(1)
        rest = squares[RANK]
        scale = (1 - rest / squares[:RANK].clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0).sqrt()
        return cls((scale[:, None] * (left[:, :RANK].T @ exact)).float(), float(rest.sqrt()))


class Limits:
    """The sketches of several changes, multiplied at once."""

    def __init__(self, sketches: Sequence[Sketch], device: torch.device) -> None:
        self._rows = torch.cat([sketch.rows for sketch in sketches]).to(device)
        self._rest = torch.tensor([sketch.rest for sketch in sketches], device=device)

    def of(self, x: Tensor) -> Tensor:
        """(..., n) upper limits of ||D x|| for x (..., d_in) float32."""
        kept = (x @ self._rows.T).unflatten(-1, (len(self._rest), -1)).square().sum(-1)
        return (kept + self._rest.square() * x.square().sum(-1, keepdim=True)).sqrt() * SLACK
