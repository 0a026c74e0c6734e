"""What methods cost on a model of some size, by formula: bytes beside the weights, and floating-point operations.

A multiply-add counts as two operations. Matrix products and factorisations are counted, norms and activations are not.
The formulas are checked against counted operations and stored bytes of small models (`tests/edits/test_scaling.py`);
`scaling.md` has what they say of 8B and 70B models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from editlab.edits.covariance import TOKENS_PER_DIMENSION

if TYPE_CHECKING:
    from editlab.lm import LM

FLOAT64 = 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that costs depend on; `is_gated`: the MLP has a gate beside its up projection."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    is_gated: bool = True
    is_tied: bool = False

    @classmethod
    def of(cls, lm: LM) -> Shape:
        """That of a loaded model."""
        a, vocab = lm.adapter, lm.model.config.vocab_size
        inside = sum(p.numel() for n, p in lm.model.named_parameters() if a.layer_of(n) == 0 and p.dim() == 2)
        attention = a.d_model * a.head_dim * 2 * (a.n_heads + a.n_kv_heads)
        # By size and not by the adapter's paths: gate and up may be one matrix.
        is_gated = inside - attention > 2 * a.d_model * a.d_mlp
        return cls(a.n_layers, a.d_model, a.d_mlp, a.n_heads, a.n_kv_heads, a.head_dim, vocab, is_gated, a.is_tied)

    @property
    def attention(self) -> int:
        """Entries of one layer's query, key, value and output projections."""
        return self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)

    @property
    def block(self) -> int:
        """Entries of one layer's matrices."""
        return self.attention + (3 if self.is_gated else 2) * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """Entries of all matrices."""
        return self.n_layers * self.block + (1 if self.is_tied else 2) * self.vocab * self.d_model


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128, 128256)


def weight_bytes(shape: Shape, each: int = 2) -> int:
    """Of all weights; `each`: 2 in bf16, 4 in float32."""
    return shape.parameters * each


def forward_flops(shape: Shape, rows: int, width: int, *, layers: int | None = None, reads: int = 0) -> int:
    """Of a forward over (rows, width) tokens through the first `layers` blocks, with logits at `reads` tokens."""
    n = shape.n_layers if layers is None else layers
    scores = 4 * rows * width * width * shape.n_heads * shape.head_dim  # Q K^T and the pattern times V
    return n * (2 * rows * width * shape.block + scores) + 2 * reads * shape.d_model * shape.vocab


def statistics_flops(shape: Shape, layer: int, tokens: int | None = None, length: int = 128) -> int:
    """Of C of one layer: a forward up to its keys, and k k^T of every token."""
    tokens = TOKENS_PER_DIMENSION * shape.d_mlp if tokens is None else tokens
    rows = -(-tokens // length)
    down = 2 * rows * length * shape.d_mlp * shape.d_model  # of the layer itself, which is not reached
    keys = 2 * tokens * shape.d_mlp**2
    return forward_flops(shape, rows, length, layers=layer + 1) - down + keys


def statistics_bytes(shape: Shape) -> int:
    """Of C of one layer, on disk and in memory, float64."""
    return FLOAT64 * shape.d_mlp**2


def value_flops(
    shape: Shape, layer: int, *, rows: int = 7, columns: int = 8, reads: int = 12, width: int = 32, steps: int = 20
) -> int:
    """Of one fact's value, about: `steps` forwards and backwards over what a change at (layer, subject) reaches.

    Args:
        width: tokens that each of them attends to.
        rows: the prompt behind each context, and the row whose distribution is kept. columns: tokens from the subject's
            last one on. reads: tokens whose logits are read.
    """
    n = shape.n_layers - 1 - layer
    above = 2 * rows * columns * shape.block * n
    scores = 4 * rows * columns * width * shape.n_heads * shape.head_dim * n
    head = 2 * reads * shape.d_model * shape.vocab
    # Weights get no gradient, so backward costs what forward does; of two factors that both get one, twice that.
    return steps * (2 * (above + head) + 3 * scores)


def solve_flops(shape: Shape, facts: int) -> int:
    """Of the closed form for so many facts at one layer: Cholesky of M, and two triangular solves a key."""
    m = shape.d_mlp
    return m**3 // 3 + 2 * facts * m * m + 2 * facts * facts * m


def span_flops(shape: Shape) -> int:
    """Of the eigendecomposition that AlphaEdit needs once per layer (tridiagonal, then divide and conquer)."""
    return 9 * shape.d_mlp**3


def solve_bytes(shape: Shape, facts: int) -> int:
    """M and its factor, keys and residuals, float64."""
    return FLOAT64 * (2 * shape.d_mlp**2 + facts * (2 * shape.d_mlp + shape.d_model))


def delta_bytes(shape: Shape, facts: int) -> int:
    """Of the edit of one layer on disk, float32: factors while they are smaller than the matrix."""
    dense = shape.d_model * shape.d_mlp
    return 4 * min(facts * (shape.d_model + shape.d_mlp), dense)


def memory_flops(shape: Shape, layer: int, *, tokens: int = 160, steps: int = 20) -> int:
    """Of one WISE edit: `steps` forwards and backwards of its rows through the side matrix and the layers above."""
    return steps * (2 * 2 * tokens * shape.block * (shape.n_layers - layer) + 2 * tokens * shape.d_mlp * shape.d_model)
