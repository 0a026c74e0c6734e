"""UltraEdit: no subject, no covariance, no optimised value; gradients written by one regularised solve (2505.14679).

For the down projections of some layers, with h the input (the key) and g the gradient of the targets' loss at the
output, both at the tokens that the targets are read from:

1. h and g are standardised with their mean and deviation over the tokens of this edit and of earlier ones, in all of
   these layers: the reference code shares them between matrices of one shape;
2. the wanted change of the output at each token is v = -eta ||h'||^2 g' (h', g' standardised);
3. D = V^T H (H^T H + I)^-1 with the raw H: the shared objective with M = I, alpha = 1, K = H^T, R = V^T.

Deviation from the reference code: rows are not padded to blocks, and the running statistics are those of this method's
active edits (kept with each of them), so undoing an edit undoes its share of them; the deviation is that of the rows,
which the reference code overestimates by n / (n - 1) for a batch of n rows. One row alone is its own mean, so the first
edit needs several layers, facts or target tokens. The published settings choose the
matrices by model (late down projections of GPT-J and Mistral, gate and up projections of Llama-3); here they are always
down projections.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from editlab.edits.record import delta_of, relative_norm
from editlab.edits.settings import EditSettings
from editlab.edits.solver import Metric, solve
from editlab.errors import EditFailed, RequestError
from editlab.hooks.batch import pad_rows
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import read_mask, rewrite_row
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("I", "1", "R from gradients, at all tokens that the target is read from")
ROWS = 16  # of one forward


class Config(EditSettings):
    """Settings of `ultraedit`."""

    layers: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        min_length=1,
        description="layers whose down projections are edited; default the last third but the last",
    )
    eta: float = Field(1e-6, gt=0, description="scale of the wanted change (paper's code: 1e-6)")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The changes of the down projections that the targets' gradients ask for.

    Raises:
        RequestError: there is no fact. ConfigError: there is no such layer. EditFailed: the system cannot be solved,
            or there is one row alone.
    """
    if not facts:
        raise RequestError("ultraedit was given no fact.", "Give at least one.")
    n = lm.adapter.n_layers
    layers = sorted({lm.adapter.check_layer(i) for i in config.layers or range(min(2 * n // 3, n - 2), n - 1)})
    inputs, gradients = _collect(lm, facts, layers, on_step)
    deltas, tensors, norms = {}, {}, []
    rows = {layer: torch.cat([inputs[layer], gradients[layer]], 1).double() for layer in layers}
    for layer, both in rows.items():
        counted = torch.full_like(both[0], len(both))
        tensors[f"moments.{layer}"] = torch.stack([counted, both.sum(0), both.square().sum(0)])
    moments = torch.stack([*tensors.values(), *_earlier(lm, width=tensors[f"moments.{layers[0]}"].shape[1])]).sum(0)
    if moments[0, 0] < 2:
        raise EditFailed(
            "UltraEdit standardises over the rows it has seen, and one target token at one layer is a single row.",
            "Name several layers, or edit several facts at once.",
        )
    for layer, both in rows.items():
        h = both[:, : inputs[layer].shape[1]]
        h_scaled, g_scaled = _standardised(both, moments).split([h.shape[1], both.shape[1] - h.shape[1]], 1)
        wanted = -config.eta * h_scaled.square().sum(1, keepdim=True) * g_scaled  # V (tokens, d_model)
        update = solve(h.T, wanted.T, Metric.of(torch.eye(h.shape[1], dtype=h.dtype), 0.0), alpha=1.0)
        name, deltas[name] = delta_of(lm, layer, update)
        norms.append(relative_norm(lm, layer, update))
    return Edit(
        method="ultraedit",
        config=config.model_dump(mode="json") | {"layers": layers},
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas=deltas,
        info={
            "layers": layers,
            "parameter": f"{len(deltas)} down projections",
            "rank": len(inputs[layers[0]]),
            "relative_norm": max(norms),
        },
        tensors=tensors,
    )


def _collect(
    lm: LM, facts: list[Fact], layers: list[int], on_step: OnStep
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """(tokens, d_mlp) keys and (tokens, d_model) output gradients of each layer, on the CPU."""
    keys: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    gradients: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    rows = sorted((rewrite_row(lm, fact, sink=True) for fact in facts), key=lambda row: len(row.ids))
    for start in range(0, len(rows), ROWS):
        on_step(StepInfo("reading gradients", start, len(rows), "facts"))
        chunk = rows[start : start + ROWS]
        batch = pad_rows([row.ids for row in chunk], pivots="right", device=lm.device)
        mask = read_mask(batch, chunk)
        wanted = torch.tensor([t for row in chunk for t in row.targets], device=lm.device)
        # What is added to the output has the output's gradient.
        added = {
            layer: torch.zeros(*batch.ids.shape, lm.adapter.d_model, device=lm.device, requires_grad=True)
            for layer in layers
        }
        with lm.session() as s, torch.enable_grad():
            for layer in layers:
                s.capture("mlp_key", layer)
                s.patch("mlp_value", layer, partial(torch.add, other=added[layer]))
            out = s.run(batch, read=mask)
            assert out.logits is not None
            loss = -out.logits.float().log_softmax(-1).gather(-1, wanted[:, None]).sum()
            found = torch.autograd.grad(loss, list(added.values()))
        for layer, gradient in zip(layers, found, strict=True):
            keys[layer].append(out.captured["mlp_key", layer][mask].detach().cpu())
            gradients[layer].append(gradient[mask].cpu())
    on_step(StepInfo("reading gradients", len(rows), len(rows), "facts"))
    return {i: torch.cat(v) for i, v in keys.items()}, {i: torch.cat(v) for i, v in gradients.items()}


def _earlier(lm: LM, *, width: int) -> list[Tensor]:
    """Count, sum and sum of squares in the layers of this method's active edits, each (3, width)."""
    edits = (entry.edit for entry in lm.ledger.active if entry.edit.method == "ultraedit")
    moments = (t for edit in edits for name, t in edit.tensors.items() if name.startswith("moments."))
    return [t for t in moments if t.shape == (3, width)]


def _standardised(rows: Tensor, moments: Tensor) -> Tensor:
    n, total, squares = moments
    mean = total / n
    deviation = (squares / n - mean.square()).clamp(min=0).sqrt()
    return (rows - mean) / (deviation + 1e-8)
