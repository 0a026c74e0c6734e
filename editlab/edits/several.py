"""Many facts into one or several layers: the procedure that MEMIT, EMMET and AlphaEdit share.

1. z_i = h_i + delta_i: for every fact the state at the last edit layer that makes the model say the target, found on
   the weights as they are (`values.py`).
2. For every edit layer in ascending order: keys K under the weights edited so far; H, the state at the last edit layer
   now; R = (Z - H) / (layers left); D from the shared objective (`solver.py`); add D to a scratch copy; go on.
3. The deltas of all layers are one edit. The keys under the final weights go with it, for later edits to keep.

(MEMIT, arXiv 2210.07229, algorithm 1.) A method is its choice of M, alpha, the span in which D may act, and whether
earlier edits' keys are kept: a function that gives a `System` per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlab.edits.keys import states_at
from editlab.edits.norm_anchor import anchor_norm, rescaled
from editlab.edits.one_place import by_place, distinct
from editlab.edits.preserve import covariances
from editlab.edits.record import delta_of, disturbance, relative_norm, spectral_norm
from editlab.edits.settings import SeveralLayersSettings, edit_layers
from editlab.edits.solver import Metric, solve
from editlab.edits.targets import Form, forms, shifts
from editlab.edits.values import site_of_shift
from editlab.errors import AdapterError, RequestError
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.edit import Delta, Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


@dataclass(frozen=True)
class System:
    """What the solve of one layer rests on; see `solver.solve`."""

    metric: Metric
    alpha: float
    within: Tensor | None = None
    notes: dict[str, Any] | None = None


# From a layer's covariance to its system, given how many keys are written at once.
Choose = Callable[[Tensor, int], System]


def write(
    lm: LM,
    method: str,
    facts: Sequence[Fact],
    config: SeveralLayersSettings,
    choose: Choose,
    on_step: OnStep = silent,
    *,
    remembers: bool = False,
) -> Edit:
    """One edit that writes all the facts.

    Args:
        remembers: keep what this method's active edits wrote before, by their keys.

    Raises:
        RequestError: no fact can be written, since others ask for another answer at its place.
            EditFailed: a system cannot be solved, or nothing was made more likely.
        AdapterError: several layers of a model that normalises the MLP's output.
    """
    if not facts:
        raise RequestError(f"{method} was given no fact.", "Give at least one.")
    layers = edit_layers(lm.adapter, config)
    top = layers[-1]
    at_stream = site_of_shift(lm, top)[0] == "resid_pre"
    if len(layers) > 1 and not at_stream:
        raise AdapterError(
            f"A change cannot be spread over layers up to {top} of {lm.adapter.family}: the MLP's output there is not "
            "added to the stream as it is, or no layer follows.",
            "Name one layer, or earlier ones.",
        )
    covariance = covariances(lm, layers, config, on_step)
    metric = Metric.of(covariance[top])
    single, copies = distinct(facts)
    own = [form for of_fact in forms(lm, single, top, config, metric) for form in of_fact]
    places = by_place(facts, copies, own, lambda: choose(covariance[top], len(own)).alpha == 0)
    found, warnings = places.forms, list(places.warnings)
    values = shifts(lm, top, found, config, on_step=on_step)
    outputs = torch.stack([f.canonical_value for f in found], 1)  # (d, B) of the MLP as it is
    solved = outputs + torch.stack([v.delta for v in values], 1).double()
    anchor = None
    if config.value_norm_anchor:
        anchor = anchor_norm(lm, top, config, metric, on_step)
        solved = rescaled(solved, anchor)
    wanted = torch.stack([f.reference for f in found], 1).cpu().double() + (solved - outputs)  # Z (d, B)

    scratch = lm.fork()
    deltas: dict[str, Delta] = {}
    diagnostics = []
    written = layers if config.spread == "uniform" else layers[-1:]
    for i, layer in enumerate(written):
        on_step(StepInfo("writing layers", i, len(written), "layers", f"layer {layer}"))
        keys = _keys(scratch, layer, found)
        gap = wanted - _states(scratch, top, found, at_stream)
        system = choose(covariance[layer], keys.shape[1])
        update = solve(
            keys,
            gap / (len(written) - i),
            system.metric,
            system.alpha,
            earlier=_earlier(lm, method, layer) if remembers else None,
            within=system.within,
        )
        name, deltas[name] = delta_of(lm, layer, update)
        scratch.ledger.apply(Edit(method, {}, [], {name: deltas[name]}))
        left = wanted - _states(scratch, top, found, at_stream)
        diagnostics.append(
            {
                "layer": layer,
                "parameter": name,
                "relative_norm": relative_norm(lm, layer, update),
                "spectral_norm": spectral_norm(update),
                "disturbance": disturbance(lm, layer, update, covariance[layer]),
                "realised": update.realised,
                "condition": update.condition,
                "median_leverage": float(update.leverage.median()),
                "jitter": system.metric.jitter,
                "gap": [float(gap.norm()), float(left.norm())],
                **(system.notes or {}),
            }
        )
    on_step(StepInfo("writing layers", len(written), len(written), "layers"))
    answered = sum(v.losses[0] < config.stop_loss for v in values)
    if answered:
        warnings.append(f"{answered} of {len(values)} targets were answered already")
    return Edit(
        method=method,
        config=config.model_dump(mode="json") | {"layers": list(layers), "layer": None},
        requests=[fact.model_dump(mode="json") for fact in places.facts],
        deltas=deltas,
        info={
            "layers": diagnostics,
            "parameter": ", ".join(deltas),
            "rank": len(found),
            "relative_norm": max(d["relative_norm"] for d in diagnostics),
            "disturbance": max(d["disturbance"] for d in diagnostics),
            "steps": [len(v.losses) for v in values],
            "target_nll": [[v.nlls[0], v.nlls[-1]] for v in values],
            "clamped": [v.clamped for v in values],
            "norm_anchor": anchor,
            "value_seconds": sum({v.started: v.seconds for v in values}.values()),
            "warnings": warnings,
            **({"failed": places.failed} if places.failed else {}),
        },
        tensors={f"keys.{layer}": _keys(scratch, layer, found).float() for layer in written},
    )


def _keys(lm: LM, layer: int, of: Sequence[Form]) -> Tensor:
    """(d_mlp, B) averaged keys under the weights of `lm`, float64 on the CPU."""
    states = states_at(lm, layer, [row for form in of for row in form.rows])
    parts = states.key.cpu().double().split([len(form.rows) for form in of])
    return torch.stack([form.weights @ part for form, part in zip(of, parts, strict=True)], dim=1)


def _states(lm: LM, layer: int, of: Sequence[Form], at_stream: bool) -> Tensor:
    """(d_model, B) where the shifts were made: states of the canonical rows under the weights of `lm`, float64, CPU."""
    states = states_at(lm, layer, [form.rows[0] for form in of])
    return (states.hidden if at_stream else states.value).cpu().double().T


def _earlier(lm: LM, method: str, layer: int) -> Tensor | None:
    """(d_mlp, n) keys that this method's active edits have written into `layer`."""
    name = f"keys.{layer}"
    found = [e.edit.tensors[name] for e in lm.ledger.active if e.edit.method == method and name in e.edit.tensors]
    return torch.cat(found, 1).double() if found else None
