"""Attention's matrices head by head, with everything linear around them folded in.

With row vectors, x the residual stream divided by its norm (and centred, where the norm centres), e the head width:

    z_q = sum_k A_qk (x_k W_V + b_V),    head output = z_q W_O,    logit_qk = (x_q W_Q + b_Q) R(q - k) (x_k W_K + b_K)^T

1. The gain of the norm in front goes into the rows of W_Q, W_K, W_V, its bias into b_Q, b_K, b_V. Where it centres,
   reading is projected off the all-ones direction, and so is writing (a LayerNorm cannot see it).
2. The gains of norms on queries and keys go into the columns of W_Q, W_K; the gain of a norm behind attention into
   those of W_O. What these norms divide by is one number per token, which scores cannot know: it is left out.
3. Grouped heads share W_K and W_V: those are kept once per group.
4. R(n), rotary embedding over n tokens, is measured: unit queries go in, rotated ones come out.

What a norm does is measured too, from its answers to random vectors, so that no class needs to be known. Proof: on a
small batch the folded matrices must give the model's own queries, keys and values (`check`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editlab.errors import ModelError, SiteUnavailable
from editlab.hooks.adapter import HeadLayout, weight_ref
from editlab.hooks.batch import Batch
from editlab.hooks.placement import device_for, home, in_dtype, in_float64, stored_bias, stored_weight
from editlab.hooks.probe import probe_ids

if TYPE_CHECKING:
    from editlab.lm import LM

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}  # of the proof, relative; 1e-3 in other types


@dataclass(frozen=True)
class Fold:
    """What a norm does: x, centred if it centres, over the root of its mean square + eps, times gain, plus bias."""

    centres: bool
    gain: Tensor  # (d,)
    bias: Tensor  # (d,)
    eps: float = 0.0

    def scaled(self, x: Tensor) -> Tensor:
        """x as the gain finds it."""
        x = x - x.mean(-1, keepdim=True) if self.centres else x
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


@dataclass(frozen=True)
class LayerHeads:
    """One layer's heads, folded; H query heads, G key-value heads, d model width, e head width.

    Attributes:
        q: (H, d, e). k, v: (G, d, e). o: (H, e, d).
        b_q: (H, e). b_k, b_v: (G, e). b_o: (d,) what attention adds whatever the heads do.
        fold: of the norm in front.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    b_q: Tensor
    b_k: Tensor
    b_v: Tensor
    b_o: Tensor
    fold: Fold

    @property
    def group(self) -> Tensor:
        """(H,) the key-value head that serves each query head."""
        n = len(self.q)
        return torch.arange(n, device=self.q.device) // (n // len(self.k))


def layer_heads(lm: LM, layer: int, dtype: torch.dtype = torch.float32) -> LayerHeads:
    """The folded heads of `layer`, as the model's weights stand now; copies, in `dtype`.

    Raises:
        ModelError: the projections or a norm could not be made out. SiteUnavailable: the layer has no single heads.
    """
    paths = lm.adapter.layers[lm.adapter.check_layer(layer)]
    lm.adapter.need_heads(layer)
    if paths.q is None or paths.k is None or paths.v is None:
        raise ModelError(
            f"The queries, keys and values of {lm.adapter.family} could not be told apart.",
            "Use a model whose attention has plain or fused q, k and v projections.",
        )
    d = lm.adapter.d_model
    fold = fold_of(lm.model, paths.attn_norm, d, dtype)
    (q, b_q), (k, b_k), (v, b_v) = (_read(lm.model, part, fold, dtype) for part in (paths.q, paths.k, paths.v))
    q, b_q = _through(lm.model, paths.q_norm, q, b_q, dtype)
    k, b_k = _through(lm.model, paths.k_norm, k, b_k, dtype)
    stored = in_dtype(weight_ref(lm.model, paths.o).oriented(lm.weight(f"{paths.o}.weight")), dtype)
    o = stored.unflatten(1, (lm.adapter.n_heads, -1)).permute(1, 2, 0)  # (H, e, d)
    b_o = _bias(lm.model, paths.o, d, stored)
    if paths.attn_out != paths.o:
        after = fold_of(lm.model, paths.attn_out, d, dtype)
        o, b_o = o * after.gain, b_o * after.gain
    if fold.centres:
        o = o - o.mean(-1, keepdim=True)
    return LayerHeads(q, k, v, o.contiguous(), b_q, b_k, b_v, b_o, fold)


def stored_heads(lm: LM, layout: HeadLayout) -> tuple[Tensor, Tensor]:
    """A projection's own matrix by heads, (heads, d, e), and bias (heads, e), nothing folded."""
    stored = weight_ref(lm.model, layout.path).oriented(lm.weight(f"{layout.path}.weight"))
    index = layout.index(stored.device)
    bias = _bias(lm.model, layout.path, layout.size, stored)
    return stored[index].transpose(-1, -2), bias[index]


def _read(model: nn.Module, layout: HeadLayout, fold: Fold, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    stored = in_dtype(weight_ref(model, layout.path).oriented(stored_weight(model, f"{layout.path}.weight")), dtype)
    index = layout.index(stored.device)
    rows = stored[index]  # (heads, e, d)
    bias = _bias(model, layout.path, layout.size, stored)[index] + rows @ fold.bias
    folded = rows * fold.gain
    if fold.centres:
        folded = folded - folded.mean(-1, keepdim=True)
    return folded.transpose(-1, -2), bias


def _bias(model: nn.Module, path: str, size: int, like: Tensor) -> Tensor:
    bias = stored_bias(model, path)
    return like.new_zeros(size) if bias is None else bias.to(like)


def _through(model: nn.Module, norm: str | None, w: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Heads (n, d, e) and biases behind a norm of each head, or of all heads together."""
    if norm is None:
        return w, b
    heads, _, width = w.shape
    module = model.get_submodule(norm)
    first = next(p for p in module.parameters())
    size = first.numel()
    # StableLM has a norm for each head, Cohere one whose gain has a row for each head.
    of_each = first.dim() == 2 or len([m for m in module.modules() if hasattr(m, "weight")]) == heads > 1
    if of_each:
        folds = [fold_of(model, norm, width, dtype, _of_head(module, heads, head)) for head in range(heads)]
        gain, centres = torch.stack([fold.gain for fold in folds]), folds[0].centres
    else:
        fold = fold_of(model, norm, size, dtype)
        gain, centres = fold.gain.unflatten(0, (-1, width)).expand(heads, width), fold.centres
    if centres:
        over = (-1,) if of_each or size == width else (0, -1)
        w, b = w - w.mean(over, keepdim=True), b - b.mean(over, keepdim=True)
    return w * gain[:, None, :], b * gain


def _of_head(module: nn.Module, heads: int, head: int) -> Callable[[Tensor], Tensor]:
    """What a module that has a norm for each head does to one head (n, e).

    It takes heads next to last where its gain has rows for them, else (n, heads, tokens, e).
    """
    is_last = next(module.parameters()).dim() == 2

    def answer(x: Tensor) -> Tensor:
        if is_last:
            return module(x[:, None, None].expand(-1, 1, heads, -1))[:, 0, head]
        return module(x[:, None, None].expand(-1, heads, 1, -1))[:, head, 0]

    return answer


def fold_of(
    model: nn.Module, path: str | None, d: int, dtype: torch.dtype, answer: Callable[[Tensor], Tensor] | None = None
) -> Fold:
    """The fold of the norm at `path`, from what it answers; of nothing for None.

    Args:
        answer: what takes (n, d) to the norm's output; default the module itself.

    Raises:
        ModelError: it is no RMSNorm or LayerNorm.
    """
    device = home(model)
    place = device_for(dtype, device)
    if path is None:
        return Fold(False, torch.ones(d, dtype=dtype, device=place), torch.zeros(d, dtype=dtype, device=place))
    module = model.get_submodule(path)
    norm = answer or module
    own = next(module.parameters(), next(model.parameters())).dtype
    generator = torch.Generator().manual_seed(0)
    # Large, so that the norm's epsilon is nothing beside it; with a mean, so that centring shows.
    x = 100 * (torch.randn(16, d, generator=generator) + 0.5)
    x = torch.cat([x, -x]).to(device, own)
    unknown = ModelError(
        f"The norm '{path}' ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm.",
        "Scores of heads need a norm whose gain can be folded.",
    )
    try:
        with torch.no_grad():
            y = in_float64(norm(x))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # it does not take vectors of this width
        raise unknown from error
    n = len(x) // 2
    bias = (y[:n] + y[n:]).mean(0) / 2
    scale = y.abs().amax().clamp(min=1e-30)
    bias = torch.where(bias.abs() > 1e-5 * scale, bias, 0.0)
    for centres in (False, True):
        unit = Fold(centres, bias, bias).scaled(in_float64(x))
        # Least squares over the vectors, feature by feature.
        gain = ((y - bias) * unit).sum(0) / unit.square().sum(0)
        if float((unit * gain + bias - y).abs().amax() / scale) < 10 * TOLERANCE.get(own, 1e-4):
            return Fold(centres, gain.to(place, dtype), bias.to(place, dtype), _eps_of(norm, x, gain, bias, centres))
    raise unknown


def _eps_of(norm: Callable[[Tensor], Tensor], x: Tensor, gain: Tensor, bias: Tensor, centres: bool) -> float:
    """Read off from vectors that are small beside it."""
    small = x * 1e-5
    with torch.no_grad():
        y = in_float64(norm(small)) - bias
    wide = in_float64(small)
    shifted = wide - (wide.mean(-1, keepdim=True) if centres else 0.0)
    square = shifted.square().mean(-1)
    ratio = (shifted * gain).norm(dim=-1) / y.norm(dim=-1).clamp(min=1e-30)
    return max(0.0, float((ratio.square() - square).median()))


def check(lm: LM) -> float:
    """Prove the folds: the largest relative error of queries, keys and values over all layers.

    Raises:
        ModelError: some layer's are not the model's own.
    """
    ids = probe_ids(lm.model).to(lm.device)
    batch = Batch(ids, torch.ones_like(ids))
    with lm.session() as s, torch.no_grad():
        for site in ("resid_pre", "q", "k", "v"):
            s.capture(site)
        seen = s.run(batch, read=None).captured
    worst = 0.0
    limit = TOLERANCE.get(next(lm.model.parameters()).dtype, 1e-3)
    for layer, paths in enumerate(lm.adapter.layers):
        heads = layer_heads(lm, layer)
        x = seen["resid_pre", layer].float()
        x = heads.fold.scaled(x) if paths.attn_norm is not None else x
        for site, w, b in (("q", heads.q, heads.b_q), ("k", heads.k, heads.b_k), ("v", heads.v, heads.b_v)):
            if getattr(paths, f"{site}_norm", None) is not None:
                continue  # captured before a norm that is folded in
            own = seen[site, layer].float()
            found = torch.einsum("btd,hde->bthe", x, w) + b
            error = float((found - own).norm() / own.norm().clamp(min=1e-30))
            worst = max(worst, error)
            if not error <= limit:
                raise ModelError(
                    f"Layer {layer} of {lm.adapter.family}: the folded '{site}' differs from the model's own by "
                    f"{error:.1e} (relative).",
                    "Heads of this architecture cannot be scored.",
                )
    return worst


def rotations(lm: LM, delta: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """R(delta) of every layer, (e, e): a query at distance `delta` after its key; identities without rotary embedding.

    From R(1), which is what turns unit queries at position 0 into those at position 1, by R(a) R(b) = R(a + b).

    Raises:
        SiteUnavailable: the model's attention function cannot be looked into (GPT-J, Falcon, BLOOM) and delta is not 0.
    """
    e, n = lm.adapter.head_dim, lm.adapter.n_layers
    if delta == 0:
        return [torch.eye(e, dtype=dtype, device=device_for(dtype, lm.device))] * n
    ids = probe_ids(lm.model).to(lm.device)[:1, :2].expand(e, 2)
    basis = torch.eye(e, device=lm.device)[:, None, None, :]  # (e, 1, 1, e): row i carries the unit query i
    with lm.session() as s, torch.no_grad():
        for layer in range(n):
            s.patch("q", layer, basis)
        s.capture("q_rot")
        seen = s.run(Batch(ids, torch.ones_like(ids)), read=None).captured
    found = []
    for layer in range(n):
        at_0, at_1 = in_float64(seen["q_rot", layer][:, 0]).unbind(1)  # (e, e) each, of head 0
        size = at_0.diagonal()  # what a norm on queries, or a scaled rotary table, did to each
        if float((at_0 - torch.diag(size)).abs().amax()) > 1e-3 * float(size.abs().amax()):
            raise SiteUnavailable(
                f"Queries of {lm.adapter.family} are changed at position 0 by more than a scale.",
                "Use delta 0.",
            )
        # Rounding adds up over many turns unless the first is a turn and nothing else.
        u, _, vh = torch.linalg.svd(at_1 / size[:, None])
        found.append(torch.linalg.matrix_power(u @ vh, abs(delta)))
    place = device_for(dtype, lm.device)
    return [(r if delta > 0 else r.T).to(place, dtype) for r in found]
