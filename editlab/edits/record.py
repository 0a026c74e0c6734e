"""The record of a solved edit: deltas in the stored layout, and the numbers that say how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlab.config import MethodConfig
from editlab.edits.solver import Metric, Update
from editlab.edits.targets import Form
from editlab.edits.values import Value
from editlab.facts import Fact
from editlab.hooks.placement import in_float64
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.lm import LM

WEAK_GAIN = 0.5


def record(
    lm: LM,
    method: str,
    config: MethodConfig,
    facts: Sequence[Fact],
    layer: int,
    update: Update,
    found: Sequence[Form],
    values: Sequence[Value],
    metric: Metric,
) -> Edit:
    """An `Edit` of the down projection of `layer`."""
    name, delta = delta_of(lm, layer, update)
    gain = [g for form in found for g in _gains(update, form)]
    warnings = []
    if min(gain) < WEAK_GAIN:
        warnings.append(
            f"the prompt's own key meets only {min(gain):.0%} of the written one; the edit may not fire there"
        )
    if any(form.is_moved for form in found):
        warnings.append(
            "the subject is the first token of the prompt, where nothing specific can be written; for the prompt as "
            "typed the edit is made at the token after it, and also reaches other subjects in its place"
        )
    if any(row.straddles for form in found for row in form.rows):
        warnings.append("the subject's last token reaches beyond the subject, so the key depends on what follows")
    info: dict[str, Any] = {
        "layer": layer,
        "parameter": name,
        "rank": update.left.shape[1],
        "relative_norm": relative_norm(lm, layer, update),
        "spectral_norm": spectral_norm(update),
        "disturbance": disturbance(lm, layer, update, metric.factor @ metric.factor.T),
        "realised": update.realised,
        "leverage": update.leverage.tolist(),
        "canonical_gain": gain,
        "jitter": metric.jitter,
        "condition": update.condition,
        "forms": [form.name for form in found],
        "edited_tokens": [form.rows[0].index for form in found],
        "first_token": any(form.is_moved for form in found),
        "steps": [len(v.losses) for v in values],
        "losses": [list(v.losses) for v in values],
        "target_nll": [[v.nlls[0], v.nlls[-1]] for v in values],
        "clamped": [v.clamped for v in values],
        "value_seconds": max(v.seconds for v in values),
        "warnings": warnings,
    }
    return Edit(
        method=method,
        config=config.model_dump(mode="json") | {"layer": layer},
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas={name: delta},
        info=info,
    )


def delta_of(lm: LM, layer: int, update: Update) -> tuple[str, Delta]:
    """The parameter's name, and the update in the layout in which it is stored, float32."""
    ref = lm.adapter.down(lm.model, layer)
    left, right = update.left.float(), update.right.float()
    if update.left.shape[1] >= min(left.shape[0], right.shape[1]):  # then factors are no smaller than the matrix
        dense = update.dense.float()
        return ref.name, Delta(dense=dense.T.contiguous() if ref.transposed else dense)
    return ref.name, (
        Delta(left=right.T.contiguous(), right=left.T.contiguous()) if ref.transposed else Delta(left, right)
    )


def relative_norm(lm: LM, layer: int, update: Update) -> float:
    """||D|| over ||W||, Frobenius."""
    ref = lm.adapter.down(lm.model, layer)
    return float(update.dense.norm()) / float(in_float64(lm.model.get_parameter(ref.name)).norm())


def spectral_norm(update: Update) -> float:
    """||D||_2, from the factors."""
    left, right = (torch.linalg.qr(factor).R for factor in (update.left, update.right.T))
    return float(torch.linalg.matrix_norm(left @ right.T, 2))


def disturbance(lm: LM, layer: int, update: Update, covariance: Tensor) -> float:
    """What ordinary keys notice: sqrt(tr(D C D^T) / tr(W C W^T)), the root mean square of the output's change."""
    ref = lm.adapter.down(lm.model, layer)
    c, left, right = covariance.double(), update.left, update.right
    weight = ref.oriented(lm.model.get_parameter(ref.name)).cpu().double()
    moved = ((left.T @ left) * (right @ c @ right.T)).sum()
    return float((moved / ((weight @ c) * weight).sum()).clamp(min=0).sqrt())


def _gains(update: Update, form: Form) -> list[float]:
    """How much of the change written at the form's key its prompts receive: (D k_0 . D k) / ||D k||^2."""
    written = update.left @ (update.right @ form.key)  # (d_v,)
    received = form.canonical_keys @ update.right.T @ update.left.T  # (n, d_v)
    scale = written.square().sum().clamp(min=torch.finfo(written.dtype).tiny)
    return (received @ written / scale).tolist()
