"""Heads made by hand: random ones with a common anisotropy, and a channel of known size planted in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tiny_lm import make_lm
from torch import Tensor

from editlab import LM
from editlab.probes.channels.factors import Factors, layer_factors
from editlab.probes.channels.parts import Part
from editlab.probes.channels.weights import Fold, LayerHeads


@dataclass
class Matrices:
    """Weights of a stack of heads: q, k, v (L, H, d, e) and o (L, H, e, d)."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    @classmethod
    def random(
        cls, seed: int, *, layers: int = 3, heads: int = 8, d: int = 96, e: int = 16, skew: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> Matrices:  # fmt: skip
        """Gaussian; with `skew` > 0 some directions of the stream are used more than others, by all heads alike."""
        g = torch.Generator().manual_seed(seed)
        use = torch.arange(1, d + 1, dtype=dtype) ** -skew
        q, k, v, o = (torch.randn(layers, heads, d, e, generator=g, dtype=dtype) * use[:, None] for _ in range(4))
        return cls(q, k, v, o.mT.contiguous())

    def layer(self, n: int) -> LayerHeads:
        d, e = self.q.shape[2:]
        zero, one = self.q.new_zeros, self.q.new_ones
        n_heads = self.q.shape[1]
        b = zero(n_heads, e)
        return LayerHeads(self.q[n], self.k[n], self.v[n], self.o[n], b, b, b, zero(d), Fold(False, one(d), zero(d)))

    def factors(self) -> Factors:
        found = [layer_factors(self.layer(n)) for n in range(len(self.q))]
        s, u, v, t, p, q = (torch.cat(x) for x in zip(*found, strict=True))
        return Factors(s, u, v, t, p, q, len(self.q), self.q.shape[1], self.q.shape[2])

    def plant(self, source: Part, target: Part, seed: int, *, share: float = 0.05, read: float = 0.3) -> Tensor:
        """Give one component of `source` a share of its energy, and `target`'s queries one that reads what it writes.

        Returns the direction (d,) in which they speak.
        """
        g = torch.Generator().manual_seed(1000 + seed)
        d = self.q.shape[2]
        unit = torch.randn(3, d, generator=g, dtype=self.q.dtype)
        spoken, heard, asked = unit / unit.norm(dim=-1, keepdim=True)
        a, b = (source.layer, source.head), (target.layer, target.head)
        self.v[a], self.o[a] = _with(self.v[a], self.o[a], heard, spoken, share)
        self.q[b], kt = _with(self.q[b], self.k[b].mT, spoken, asked, read)
        self.k[b] = kt.mT
        return spoken

    def crowd(self, source: Part, target: Part, mix: float) -> None:
        """Let all that `source` writes lean a little towards all that `target`'s queries read: a broad channel."""
        a, b = (source.layer, source.head), (target.layer, target.head)
        reads = self.q[b].mT
        self.o[a] = self.o[a] + mix * reads * self.o[a].norm() / reads.norm()


def _with(left: Tensor, right: Tensor, read: Tensor, write: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Factors of the product with its last component replaced by read x write, at this share of the energy."""
    d = len(read)
    off = [torch.eye(d, dtype=x.dtype) - torch.outer(x, x) for x in (read, write)]
    u, s, vh = torch.linalg.svd(off[0] @ left @ right @ off[1])
    e = left.shape[1]
    rest = s[: e - 1]
    size = (share / (1 - share) * rest.square().sum()).sqrt()
    root = torch.cat([rest, size[None]]).sqrt()
    return torch.cat([u[:, : e - 1], read[:, None]], 1) * root, torch.cat([vh[: e - 1], write[None]]) * root[:, None]


def to_lm(m: Matrices) -> LM:
    """A Llama with these heads, norms that only divide, and MLPs that give nothing."""
    layers, heads, d, e = m.q.shape
    sizes = {"hidden_size": d, "num_hidden_layers": layers, "head_dim": e}
    lm = make_lm("llama", num_attention_heads=heads, num_key_value_heads=heads, **sizes)
    with torch.no_grad():
        for n, block in enumerate(lm.model.model.layers):
            for name, w in (("q", m.q[n]), ("k", m.k[n]), ("v", m.v[n])):
                getattr(block.self_attn, f"{name}_proj").weight.copy_(w.permute(0, 2, 1).flatten(0, 1))
            block.self_attn.o_proj.weight.copy_(m.o[n].flatten(0, 1).T)
            block.input_layernorm.weight.fill_(1)
            block.mlp.down_proj.weight.zero_()
    return LM(lm.model, lm.tokenizer, name="planted")
