"""Scaling a component: on a head's output while the model runs, or in the weights as an edit of the ledger.

Component i of OV_h writes along v = v_i. With z the head's output before the projection (a = z W_O its contribution):

    a <- a + (alpha - 1)(a . v) v,    W_O <- W_O (I + (alpha - 1) v v^T),    OV <- OV + (alpha - 1) s_i u_i v_i^T

are one and the same.

alpha = 0 removes it, 1 leaves it, 2 doubles it. Only the head's own columns of the output projection change, never the
values that grouped heads share. On z the same is z <- z + (alpha - 1)(z . m) c with m = W_O v and c W_O = v^T, which
exists because v lies in what W_O can write.

Component j of QK_h is scaled where its queries read p = p_j: with W the folded matrix and p = W c,
W_Q <- W_Q (I + (alpha - 1) c p^T W), exact for a query at its own key's position (rotary embedding does not commute).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from editlab.errors import ConfigError, RequestError
from editlab.hooks.adapter import weight_ref
from editlab.hooks.placement import in_float64
from editlab.probes.channels.factors import layer_factors
from editlab.probes.channels.parts import Part
from editlab.probes.channels.weights import layer_heads, stored_heads
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.hooks.adapter import HeadLayout
    from editlab.lm import LM

METHOD = "channel"
Side = Literal["ov", "qk"]


@dataclass(frozen=True)
class Writer:
    """What a head writes along some directions, read from its z.

    Attributes:
        directions: (m, d) orthonormal. measure: (e, m) so that z @ measure are the coordinates a . v.
        answer: (m, e) so that adding x @ answer to z adds x @ directions to the head's contribution.
    """

    layer: int
    head: int
    directions: Tensor
    measure: Tensor
    answer: Tensor

    def coordinates(self, z: Tensor) -> Tensor:
        """(..., m) of the head's outputs (..., e)."""
        return z @ self.measure.to(z)

    def scaled(self, alpha: float) -> Callable[[Tensor], Tensor]:
        """A patch for site "z" of this head, (..., e) or (..., 1, e): its coordinates times alpha."""
        return lambda z: z + (alpha - 1) * (z @ self.measure.to(z)) @ self.answer.to(z)

    def set_to(self, wanted: Tensor) -> Callable[[Tensor], Tensor]:
        """Likewise: its coordinates become `wanted` (..., m)."""
        return lambda z: z + (wanted.to(z) - z @ self.measure.to(z)) @ self.answer.to(z)


def check_writer(lm: LM) -> None:
    """Raise ConfigError where what heads write passes through a norm of its own before it reaches the stream."""
    if any(paths.attn_out != paths.o for paths in lm.adapter.layers):
        raise ConfigError(
            f"{lm.adapter.family} has a norm behind attention, so a head's part of what is written has no fixed size.",
            "Channels of it can be scanned, but not edited or tested.",
        )


def writer(lm: LM, part: Part, directions: Tensor | None = None) -> Writer:
    """A head's component, or the head along other directions that it can write.

    Args:
        directions: (m, d), within what the head can write; default the component named.

    Raises:
        RequestError: there is no such part. ConfigError: a norm stands behind attention.
    """
    check_writer(lm)
    part.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
    o = layer_heads(lm, part.layer, torch.float64).o[part.head]  # (e, d)
    if directions is None:
        if part.component is None:
            raise RequestError(f"{part} is a whole head.", f"Name a component of it, such as {part}.0.")
        directions = written(lm, part)[None]
    basis = torch.linalg.qr(directions.to(o).mT).Q.mT  # (m, d), the same directions where they are orthonormal
    basis = torch.where((basis * directions.to(o)).sum(-1, keepdim=True) < 0, -basis, basis)
    return Writer(part.layer, part.head, basis, o @ basis.mT, torch.linalg.lstsq(o.mT, basis.mT).solution.mT)


def written(lm: LM, part: Part) -> Tensor:
    """(d,) float64: the unit direction that a component writes."""
    part.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
    assert part.component is not None
    _, _, v, *_ = layer_factors(layer_heads(lm, part.layer, torch.float64))
    return v[part.head, part.component]


def component_edit(lm: LM, parts: Sequence[Part], alpha: float, side: Side = "ov") -> Edit:
    """The edit that scales components by `alpha` in the weights; apply it with `lm.ledger.apply`.

    Components of one head are scaled together, as one block.

    Raises:
        RequestError: no component is named, or there is no such part. ConfigError: a norm stands behind attention.
    """
    parts = list(dict.fromkeys(parts))
    if not parts:
        raise RequestError("No component was named.", "Name one or more, such as 20.0.0.")
    if side == "ov":
        check_writer(lm)
    changes: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for head in dict.fromkeys(part.whole for part in parts):
        own = [part for part in parts if part.whole == head]
        for part in own:
            part.check(lm.adapter.n_layers, lm.adapter.n_heads, lm.adapter.head_dim)
            if part.component is None:
                raise RequestError(f"{part} is a whole head.", "Name components such as 20.0.0, or prune the head.")
        components = [part.component for part in own if part.component is not None]
        name, left, right = (_written if side == "ov" else _asked)(lm, head, components)
        changes.setdefault(name, []).append((left, (alpha - 1) * right))
    deltas = {
        name: Delta.low_rank(torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs]))
        for name, pairs in changes.items()
    }
    names = ", ".join(map(str, parts))
    what = f"{'removed' if alpha == 0 else f'scaled by {alpha:g}'}: {names}"
    where = "what is written" if side == "ov" else "what queries read"
    config = {"components": [str(part) for part in parts], "alpha": alpha, "side": side}
    return Edit(METHOD, config, requests=[], deltas=deltas, info={"what": f"{what} ({where})"})


def _written(lm: LM, head: Part, components: list[int]) -> tuple[str, Tensor, Tensor]:
    """The output projection's name, and factors of V^T V on the head's columns in the stored layout, float64."""
    _, _, v, *_ = layer_factors(layer_heads(lm, head.layer, torch.float64))
    directions = v[head.head, components]  # (m, d)
    ref = weight_ref(lm.model, lm.adapter.layers[head.layer].o)
    weight = in_float64(ref.oriented(lm.weight(ref.name)))  # (d, H e)
    width = weight.shape[1] // lm.adapter.n_heads
    columns = slice(head.head * width, (head.head + 1) * width)
    right = torch.zeros(len(components), weight.shape[1], dtype=torch.float64, device=weight.device)
    right[:, columns] = directions @ weight[:, columns]
    return _stored(ref.name, ref.transposed, directions.mT, right)


def _asked(lm: LM, head: Part, components: list[int]) -> tuple[str, Tensor, Tensor]:
    """The query projection's name, and factors of c p^T W behind its raw matrix, float64."""
    heads = layer_heads(lm, head.layer, torch.float64)
    layout: HeadLayout | None = lm.adapter.layers[head.layer].q
    assert layout is not None  # layer_heads saw to it
    if lm.adapter.layers[head.layer].q_norm is not None:
        raise ConfigError(
            f"{lm.adapter.family} has a norm on its queries, so a component of them has no fixed size.",
            "Scale what an earlier head writes instead (side 'ov').",
        )
    *_, p, _ = layer_factors(heads)
    folded, directions = heads.q[head.head], p[head.head][:, components]  # (d, e), (d, m)
    c = torch.linalg.lstsq(folded, directions).solution  # (e, m)
    raw = in_float64(stored_heads(lm, layout)[0][head.head])  # (d, e)
    ref = weight_ref(lm.model, layout.path)
    left = torch.zeros(layout.size, len(components), dtype=torch.float64, device=raw.device)
    left[layout.index(raw.device)[head.head]] = (directions.mT @ folded).mT  # (e, m) at the head's features
    return _stored(ref.name, ref.transposed, left, (raw @ c).mT)


def _stored(name: str, transposed: bool, left: Tensor, right: Tensor) -> tuple[str, Tensor, Tensor]:
    """Factors of an (out, in) change in the layout of the parameter."""
    return (name, right.mT, left.mT) if transposed else (name, left, right)
