"""From what the unembedding reads to logits: the scale, and the cap, that a model puts on them.

Families scale their logits here or there (Granite, Cohere and Falcon-H1 after the unembedding, MiniCPM-3 before it) and
name the number as they like. So it is measured: states of known size are put in the place of what the
unembedding reads, and the model's logits are compared with W u. Their form is

    logits = cap(scale W u + bias_scale b),    cap(x) = c tanh(x / c), or x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editlab.errors import SiteUnavailable
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.cone import entering_at, until
from editlab.hooks.placement import home, stored_bias, stored_weight

TOKENS = 256  # of the vocabulary, at most, that are compared
SIZES = (0.5, 2.0, 5.0, 10.0, 20.0, 40.0)  # of the products W u, so that a cap shows


@dataclass(frozen=True)
class LogitForm:
    """What stands between W u + b and the logits; `reason` says why that could not be shown, empty where it could."""

    scale: float = 1.0
    bias_scale: float = 1.0
    cap: float | None = None
    reason: str = ""


def measure_logits(model: Any, unembed: str, ids: Tensor) -> LogitForm:
    """The form of a model's logits, from one pass over `ids`."""
    weight = stored_weight(model, f"{unembed}.weight")
    tokens = torch.linspace(0, weight.shape[0] - 1, min(TOKENS, weight.shape[0])).long().to(weight.device)
    rows = weight[tokens].cpu().double()
    given: list[Tensor] = []

    def put(module: nn.Module, args: Any) -> Any:
        x = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        size = (x @ rows.T).square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
        count = x[..., 0].numel()
        sizes = torch.tensor(SIZES, dtype=torch.float64).repeat(-(-count // len(SIZES)))[:count]
        given.append((x / size * sizes.reshape(size.shape)).to(args[0].dtype).to(args[0].device))
        return (given[-1], *args[1:])

    handle = model.get_submodule(unembed).register_forward_pre_hook(put)
    try:
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
    finally:
        handle.remove()
    is_half = logits.dtype not in (torch.float32, torch.float64)
    logits = logits[..., tokens.to(logits.device)].cpu().double()
    product = given[0].cpu().double() @ rows.T
    bias = stored_bias(model, unembed)
    shift = torch.zeros(()) if bias is None else bias[tokens.to(bias.device)].cpu().double()
    best = LogitForm(reason="its logits are no scaled product of the unembedding with one state")
    least, near = (3e-2, 2e-2) if is_half else (1e-4, 1e-3)  # error of the form; of a number of the configuration
    for cap in (None, *_caps(model.config)):
        form = _fit(product, shift.expand_as(product), logits, cap, model.config, near)
        error = float((_shaped(form, product, shift) - logits).abs().amax() / logits.abs().amax().clamp(min=1e-30))
        if error <= least:
            best, least = form, error
    return best


def _caps(config: Any) -> Iterator[float]:
    """Numbers of the configuration that may cap logits, by their names."""
    for name, value in config.get_text_config().to_dict().items():
        if "soft" in name and "cap" in name and "attn" not in name and isinstance(value, int | float) and value > 0:
            yield float(value)


def _fit(product: Tensor, shift: Tensor, logits: Tensor, cap: float | None, config: Any, near: float) -> LogitForm:
    inside = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.99 * cap
    flat = logits[inside] if cap is None else cap * torch.atanh(logits[inside] / cap)
    design = torch.stack([product[inside], shift[inside]], -1)
    has_bias = bool(shift.any())
    solved = torch.linalg.lstsq(design if has_bias else design[:, :1], flat[:, None]).solution[:, 0]
    scale = _snapped(float(solved[0]), config, near)
    own = float(solved[1]) if has_bias else 1.0
    return LogitForm(scale, min((1.0, scale), key=lambda x: abs(x - own)) if has_bias else 1.0, cap)


def _snapped(scale: float, config: Any, near: float) -> float:
    """The number that the configuration has for a measured one, if it has one."""
    numbers = [v for v in config.get_text_config().to_dict().values() if type(v) in (int, float) and v]
    exact = [1.0, *(float(v) for v in numbers), *(1 / v for v in numbers)]
    closest = min(exact, key=lambda v: abs(v - scale))
    return closest if abs(closest - scale) <= near * abs(scale) else scale


def _shaped(form: LogitForm, product: Tensor, shift: Tensor) -> Tensor:
    logits = form.scale * product + form.bias_scale * shift
    return logits if form.cap is None else torch.tanh(logits / form.cap) * form.cap


def what_unembedding_reads(model: Any, adapter: ModelAdapter, stream: Tensor) -> Tensor:
    """(R, D') from the residual stream after a block (R, D): the model's own norm, and whatever else stands there."""
    ids = torch.zeros(len(stream), 1, dtype=torch.long, device=home(model))
    kwargs = {"position_ids": ids} if adapter.takes_position_ids else {}
    with (
        entering_at(model, adapter, adapter.n_layers, stream[:, None]),
        until(model.get_submodule(adapter.unembed)) as kept,
    ):
        model(ids, attention_mask=torch.ones_like(ids), use_cache=False, **kwargs)
    return kept[0][:, -1]


def token_logits(model: nn.Module, adapter: ModelAdapter, read: Tensor, tokens: Tensor) -> Tensor:
    """(R, n) the model's logits of `tokens` (R, n), from what the unembedding reads (R, D).

    Raises:
        SiteUnavailable: detection could not show how this model makes logits.
    """
    if adapter.no_logits:
        raise SiteUnavailable(
            f"Logits of single tokens cannot be made for {adapter.family}: {adapter.no_logits}.",
            "Use the logits of whole forward passes.",
        )
    weight = stored_weight(model, f"{adapter.unembed}.weight")
    bias = stored_bias(model, adapter.unembed)
    product = torch.einsum("rd,rnd->rn", read, weight[tokens])
    shift = torch.zeros_like(product) if bias is None else bias[tokens]
    return _shaped(LogitForm(adapter.logit_scale, adapter.logit_bias_scale, adapter.logit_cap), product, shift)
