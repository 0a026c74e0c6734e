"""Components in words: the tokens that what is written promotes, and the tokens that are read. A heuristic.

v_i goes through the final norm's gain and the unembedding. u_i (p_j, q_j) is held against the token embeddings as the
head finds them, over their root mean square (and centred, where the norm centres): the gain of the norm in front is in
u_i already. Both signs, since a component's sign is a convention (Millidge and Black, "The Singular Value
Decompositions of Transformer Weight Matrices are Highly Interpretable", 2022). Later layers and MLPs are skipped, and
what a head reads in the middle of a model is not an embedding: tokens with no common theme say nothing against it.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.errors import RequestError
from editlab.probes.channels.factors import Factors
from editlab.probes.channels.parts import Part
from editlab.probes.channels.weights import fold_of, layer_heads
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM

LABEL = "heuristic: embeddings and unembedding alone"


@dataclass(frozen=True)
class Readout(Saved):
    """Tokens of one component, most first, by what is looked at.

    Attributes:
        tokens: "writes +", "writes -", "reads +", "reads -", "queries +", ... to (token, score) pairs.
    """

    part: Part
    tokens: dict[str, tuple[tuple[str, float], ...]]

    def to_pandas(self) -> pd.DataFrame:
        """A column for each thing that is looked at, the tokens in order."""
        import pandas as pd

        return pd.DataFrame({name: [token for token, _ in found] for name, found in self.tokens.items()})

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(f'{self.part}, {LABEL}')}</p>{self.to_pandas().to_html(index=False)}"


def read_out(lm: LM, factors: Factors, part: Part, k: int = 10) -> Readout:
    """The `k` tokens of each side of a component.

    Raises:
        RequestError: no component is named, or there is no such part.
    """
    index = factors.index(part)
    if part.component is None:
        raise RequestError(f"{part} is a whole head.", f"Name a component of it, such as {part}.0.")
    i, a = part.component, lm.adapter
    final = fold_of(lm.model, a.final_norm, a.d_model, factors.v.dtype)
    unembed, embed = (lm.weight(f"{name}.weight").to(factors.v) for name in (a.unembed, a.embed))
    found = {"writes": a.logit_scale * (unembed @ (factors.v[index, i] * final.gain))}
    if embed.shape[1] == a.d_model:
        seen = layer_heads(lm, part.layer, embed.dtype).fold.scaled(embed)  # its gain is folded into what is read
        sides = {"reads": factors.u, "queries": factors.p, "keys": factors.q}
        found |= {name: seen @ side[index, :, i] for name, side in sides.items()}
    tokens = {}
    for name, scores in found.items():
        tokens[f"{name} +"] = _top(lm, scores, k)
        tokens[f"{name} -"] = _top(lm, -scores, k)
    return Readout(part, tokens)


def _top(lm: LM, scores: Tensor, k: int) -> tuple[tuple[str, float], ...]:
    values, ids = scores.topk(min(k, len(scores)))
    return tuple((lm.tokenizer.decode([i]), float(v)) for i, v in zip(ids.tolist(), values.tolist(), strict=True))


def copying(lm: LM, factors: Factors, part: Part, words: tuple[str, ...], k: int = 5) -> float:
    """The share of words that a head, attending to one, puts among the `k` tokens that it promotes most."""
    index, a = factors.index(part), lm.adapter
    final = fold_of(lm.model, a.final_norm, a.d_model, torch.float32)
    ids = torch.tensor([lm.tokens(f" {word}", special=False)[0][0] for word in words])
    embed = lm.weight(f"{a.embed}.weight").float()
    unembed = lm.weight(f"{a.unembed}.weight").float()
    x = layer_heads(lm, part.layer).fold.scaled(embed[ids])
    out = ((x @ factors.u[index]) * factors.s[index]) @ factors.v[index]
    best = ((out * final.gain) @ unembed.T).topk(k).indices
    return float((best.cpu() == ids[:, None]).any(1).float().mean())
