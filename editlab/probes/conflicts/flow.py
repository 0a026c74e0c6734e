"""Where in the model the conflict is decided: knock-outs, cut attention and the logit lens, layer by layer.

    knockout   what attention, the MLP or both add to the stream in one layer is set to zero, at the last position or
               everywhere; the change of LD = logit(memory) - logit(context)
    cut        attention from the last position to one span of the prompt is cut in a window of layers (arXiv
               2304.14767): the context's subject or answer, the question's subject, or all else but the position itself
    lens       LD of the stream after each half of a block, read through the final norm

Each run starts from the layer that is changed (`editlab.hooks.cone`): what lies below is computed once.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from editlab.evaluation.statistics import estimate_joint
from editlab.hooks.batch import Batch
from editlab.hooks.cone import Cone
from editlab.hooks.logit_form import token_logits, what_unembedding_reads
from editlab.hooks.session import Session
from editlab.probes.conflicts.items import Items
from editlab.probes.conflicts.rates import by_subject
from editlab.probes.conflicts.readout import Prompts
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

COMPONENTS = {"attention": ("attn_out",), "mlp": ("mlp_out",), "both": ("attn_out", "mlp_out")}
SPANS = ("subj1", "obj_ctx", "subj2", "rest")
Place = Literal["last", "all"]
Put = Callable[[Session, int, Batch, list[int]], None]


@dataclass(frozen=True)
class Flow(Saved):
    """Effects by layer.

    Attributes:
        knockout: by component (items, L), change of LD. cut: by span, the same for windows centred on a layer; empty
            where the architecture's attention cannot be patched. lens: (items, L, 2) LD after attention and after the
            MLP; NaN after attention where both read the same stream.
        window: layers that are cut together.
    """

    knockout: dict[str, np.ndarray]
    cut: dict[str, np.ndarray]
    lens: np.ndarray
    subjects: tuple[str, ...]
    window: int
    place: Place
    relation: str
    format: str
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        parts = []
        for name, values in {**self.knockout, **{f"attention to {k}": v for k, v in self.cut.items()}}.items():
            mean = values.mean(0)
            layer = int(np.abs(mean).argmax())
            parts.append(f"{name} {mean[layer]:+.2f} at layer {layer}")
        return f"{self.relation}, {self.format}: largest changes of LD without {', '.join(parts)}."

    def to_pandas(self) -> pd.DataFrame:
        """One row per layer and measure, with 95 % bootstrap intervals over subjects."""
        import pandas as pd

        measures = {f"without {name}": values for name, values in self.knockout.items()}
        measures |= {f"attention cut to {name}": values for name, values in self.cut.items()}
        measures |= {"lens after attention": self.lens[..., 0], "lens after MLP": self.lens[..., 1]}
        rows = []
        for name, values in measures.items():
            for layer in range(values.shape[1]):
                if np.isnan(values[:, layer]).all():
                    continue
                found = estimate_joint([by_subject(values[:, layer], self.subjects).tolist()], np.asarray)
                rows.append(
                    {
                        "measure": name,
                        "layer": layer,
                        "LD": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "n": found.n,
                    }
                )
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Lines over layers, one a measure, with their intervals."""
        from editlab.viz.conflicts import conflict_flow

        return conflict_flow(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>"


def flow(lm: LM, items: Items, *, place: Place = "last", window: int | None = None, on_step: OnStep = silent) -> Flow:
    """Knock out every layer, cut attention in every window, and read the stream.

    Args:
        window: layers that are cut together, about as many below the middle one as above; default an odd number near a
            fifth of the model.
    """
    n_layers = lm.adapter.n_layers
    width = window or max(1, n_layers // 5 // 2 * 2 + 1)
    prompts = Prompts(lm, [item.ids for item in items.items])
    tokens = torch.tensor([[item.tok_mem, item.tok_ctx] for item in items.items], device=lm.device)
    base = _differences(lm, prompts, tokens, lambda batch: batch)
    knockout = {name: np.zeros((len(items), n_layers)) for name in COMPONENTS}
    for layer in range(n_layers):
        on_step(StepInfo("knocking out layers", layer, n_layers, "layers"))
        frozen = _cones(lm, prompts, layer)
        for name, sites in COMPONENTS.items():

            def zero(s: Session, n: int, batch: Batch, index: list[int], sites: Sequence[str] = sites) -> None:
                for site in sites:
                    s.patch(site, layer, torch.zeros_like, at=-1 if place == "last" else None)  # noqa: B023

            after = _differences(lm, prompts, tokens, _entering(frozen), zero)
            knockout[name][:, layer] = after - base
    on_step(StepInfo("knocking out layers", n_layers, n_layers, "layers"))
    cut = {} if _is_fixed(lm) else _cut(lm, items, prompts, tokens, width, on_step)
    return Flow(
        knockout,
        cut,
        _lens(lm, prompts, tokens),
        items.subjects,
        width,
        place,
        items.relation,
        items.settings.format,
        lm.name,
    )


def _is_fixed(lm: LM) -> bool:
    """Whether this architecture's attention can be read only."""
    from editlab.errors import SiteUnavailable

    with lm.session() as s:
        try:
            s.patch("scores", 0, lambda part: part)
        except SiteUnavailable:
            return True
    return False


def _entering(frozen: dict[int, Cone]) -> Callable[[Batch], Cone]:
    return lambda batch: frozen[id(batch)]


def _cones(lm: LM, prompts: Prompts, layer: int) -> dict[int, Cone]:
    return {id(batch): lm.prefix(batch, layer) for _, batch in prompts.batches}


def _differences(
    lm: LM, prompts: Prompts, tokens: Tensor, entry: Callable[[Batch], Batch | Cone], put: Put | None = None
) -> np.ndarray:
    """(items,) LD with whatever `put` registers."""
    out = np.zeros(prompts.n)
    for n, (index, batch) in enumerate(prompts.batches):
        with lm.session() as s, torch.no_grad():
            if put is not None:
                put(s, n, batch, index)
            logits = s.run(entry(batch), read=batch.last).logits
        assert logits is not None
        found = logits.gather(1, tokens[index])
        out[index] = (found[:, 0] - found[:, 1]).cpu().double().numpy()
    return out


def _cut(lm: LM, items: Items, prompts: Prompts, tokens: Tensor, width: int, on_step: OnStep) -> dict[str, np.ndarray]:
    n_layers = lm.adapter.n_layers
    out = {name: np.zeros((len(items), n_layers)) for name in SPANS}

    def nothing(s: Session, n: int, batch: Batch, index: list[int]) -> None:
        s.patch("scores", 0, lambda part: part)  # under the tap, as the cut runs are

    base = _differences(lm, prompts, tokens, lambda batch: batch, nothing)
    for layer in range(n_layers):
        on_step(StepInfo("cutting attention", layer, n_layers, "layers"))
        first = layer - (width - 1) // 2
        layers = range(max(0, first), min(n_layers, first + width))
        frozen = _cones(lm, prompts, layers[0])
        for name in SPANS:

            def cut(s: Session, n: int, batch: Batch, index: list[int], name: str = name) -> None:
                away = _columns(items, batch, index, name)[:, None]  # (B, 1, S)

                def blind(part: Tensor) -> Tensor:
                    part = part.clone()
                    part[:, :, -1] = part[:, :, -1].masked_fill(away, torch.finfo(part.dtype).min)
                    return part

                for at in layers:  # noqa: B023
                    s.patch("scores", at, blind)

            after = _differences(lm, prompts, tokens, _entering(frozen), cut)
            out[name][:, layer] = after - base
    on_step(StepInfo("cutting attention", n_layers, n_layers, "layers"))
    return out


def _columns(items: Items, batch: Batch, index: list[int], name: str) -> Tensor:
    """(B, T) bool: where the span lies; the last position itself is never in it."""
    out = torch.zeros_like(batch.mask, dtype=torch.bool)
    for row, i in enumerate(index):
        spans = items.items[i].spans
        if name == "rest":
            out[row] = batch.mask[row].bool()
            for other in ("subj1", "obj_ctx", "subj2"):
                out[row, slice(*(batch.column(row, t) for t in spans[other]))] = False
        else:
            out[row, slice(*(batch.column(row, t) for t in spans[name]))] = True
        out[row, batch.width - 1] = False
    return out


def _lens(lm: LM, prompts: Prompts, tokens: Tensor) -> np.ndarray:
    n_layers = lm.adapter.n_layers
    sites = ("resid_post",) if lm.adapter.is_parallel else ("resid_mid", "resid_post")
    out = np.full((prompts.n, n_layers, 2), np.nan)
    for index, batch in prompts.batches:
        with lm.session() as s, torch.no_grad():
            for site in sites:
                s.capture(site, at=-1)
            kept = s.run(batch, read=None).captured
        with torch.no_grad():
            for site in sites:
                for layer in range(n_layers):
                    read = what_unembedding_reads(lm.model, lm.adapter, kept[site, layer])
                    values = token_logits(lm.model, lm.adapter, read, tokens[index])
                    difference = (values[:, 0] - values[:, 1]).cpu().double().numpy()
                    out[index, layer, int(site == "resid_post")] = difference
    return out
