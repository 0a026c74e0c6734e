"""Figures of channels between heads, from their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from editlab.errors import UnknownName
from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.channels.nulls import Tail
    from editlab.probes.channels.parts import Mode, Part
    from editlab.probes.channels.roles import HeadRoles
    from editlab.probes.channels.scan import Level, Scan

VALUES = {
    "best": "best component pair |cos|",
    "head": "head score CS",
    "excess": "head score above the backward median",
    "p": "-log10 p of the head score",
}
# What each value is a score of, and so which null it is held against.
NULLS: dict[str, tuple[Level, str]] = {
    "best": ("pair", "best pairs"),
    "head": ("head", "whole heads"),
    "excess": ("head", "whole heads"),
    "p": ("head", "whole heads"),
}


def composition_map(scan: Scan, mode: Mode, value: str = "best") -> go.Figure:
    """Writers down, readers across, by layer and head; the lower left half, in the wrong order, is the null.

    Args:
        value: one of `VALUES`.

    Raises:
        UnknownName: there is no such value.
    """
    import plotly.graph_objects as go

    if value not in VALUES:
        raise UnknownName(f"There is no value '{value}'.", f"Choose one of {', '.join(VALUES)}.")
    found, f = scan.compositions[mode], scan.factors
    names = [str(f.part(i)) for i in range(f.n)]
    level, scored = NULLS[value]
    null = scan.null(mode, level)
    shown = found.best if value == "best" else found.head
    p = [_p(scan.null(mode, "head"), found.head), _p(scan.null(mode, "pair"), found.best)]
    if value == "excess":
        shown = shown - null.quantile(0.5)
    elif value == "p":
        shown = -np.log10(p[0])
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=names,
            y=names,
            colorscale="PuOr" if value == "excess" else "Cividis",
            zmid=0.0 if value == "excess" else None,
            customdata=np.stack([found.head, found.best, *np.moveaxis(found.best_at, -1, 0), *p], -1),
            hovertemplate=(
                "%{y} → %{x}<br>CS %{customdata[0]:.4f}, p %{customdata[4]:.1e}<br>"
                "best pair |cos| %{customdata[1]:.3f} (.%{customdata[2]} → .%{customdata[3]}), "
                "p %{customdata[5]:.1e}<extra></extra>"
            ),
            colorbar={"title": VALUES[value]},
        )
    )
    ticks = [str(f.part(i)) for i in range(0, f.n, f.n_heads)]
    figure.update_layout(
        title=f"{mode.upper()}-composition: null of {scored}, median {null.quantile(0.5):.4f}, "
        f"99.9 % {null.quantile(0.999):.4f}",
        xaxis={"title": "reader", "type": "category", "tickvals": ticks},
        yaxis={"title": "writer", "type": "category", "tickvals": ticks, "autorange": "reversed"},
        height=640,
    )
    return figure


def _p(null: Tail, scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), np.nan, null.p(np.nan_to_num(scores)))


def writers_map(scan: Scan, target: Part, mode: Mode) -> go.Figure:
    """Layers down, heads across: the best component of each earlier head into one reader (the paper's view)."""
    import plotly.graph_objects as go

    from editlab.probes.channels.composition import component_scores

    f, reader = scan.factors, scan.factors.index(target)
    rows = target.layer
    scores = np.stack(
        [component_scores([f], mode, a, reader) for a in range(rows * f.n_heads)] or [np.zeros(f.width)]
    )  # (writers, e)
    best = scores.argmax(1)
    shape = (max(rows, 1), -1) if rows else (1, 1)
    tail = scan.null(mode, "strongest")
    figure = go.Figure(
        go.Heatmap(
            z=scores.max(1).reshape(shape),
            customdata=np.stack([best.reshape(shape), tail.p(scores.max(1)).reshape(shape)], -1),
            colorscale="Cividis",
            hovertemplate="%{y}.%{x}.%{customdata[0]}<br>CS %{z:.3f}, p %{customdata[1]:.1e}<extra></extra>",
            colorbar={"title": "CS"},
        )
    )
    figure.update_layout(
        title=f"Best component into {target.whole} ({mode.upper()}); null of best components, "
        f"99.9 % {tail.quantile(0.999):.3f}",
        xaxis={"title": "head", "dtick": 1},
        yaxis={"title": "layer"},
    )
    return figure


def spectrum(scan: Scan, part: Part, target: Part | None = None, mode: Mode = "q") -> go.Figure:
    """A head's singular values and their cumulative share; with a target what each component sends it, and the null."""
    import plotly.graph_objects as go

    from editlab.probes.channels.composition import component_scores

    f, index = scan.factors, scan.factors.index(part)
    x = list(range(f.width))
    share = f.energy[index].cpu().numpy()
    figure = go.Figure()
    figure.add_bar(x=x, y=share, name="share of energy", marker={"color": COLOURS[0]}, opacity=0.6)
    figure.add_scatter(
        x=x, y=share.cumsum(), name="cumulative share", line={"color": COLOURS[0], "dash": DASHES[1]}, mode="lines"
    )
    if target is not None and target.layer > part.layer:
        tail = scan.null(mode, "component")
        scores = component_scores([f], mode, index, f.index(target))
        figure.add_scatter(
            x=x,
            y=scores,
            name=f"CS into {target.whole} ({mode.upper()})",
            mode="markers+lines",
            line={"color": COLOURS[1]},
            marker={"symbol": MARKERS[1]},
            customdata=tail.p(scores),
            hovertemplate=f"{part.whole}.%{{x}}<br>CS %{{y:.3f}}, p %{{customdata:.1e}}<extra></extra>",
        )
        for level, dash in ((0.5, DASHES[2]), (0.999, DASHES[3])):
            figure.add_hline(
                tail.quantile(level), line={"color": COLOURS[3], "dash": dash}, annotation_text=f"null {level:.1%}"
            )
    if part.component is not None:
        figure.add_vline(part.component, line={"color": COLOURS[2], "dash": DASHES[2]})
    figure.update_layout(
        title=f"Components of {part.whole}",
        xaxis_title="component",
        yaxis={"title": "share, score", "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 72},
    )
    return figure


def roles_map(roles: HeadRoles) -> go.Figure:
    """Layers down, heads across; a button for each role."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (role, values) in enumerate(roles.scores.items()):
        figure.add_heatmap(
            z=values.mean(0),
            visible=i == 0,
            name=role,
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            hovertemplate=f"%{{y}}.%{{x}}<br>{role} %{{z:.3f}} (n={len(values)})<extra></extra>",
            colorbar={"title": "score"},
        )
    names = list(roles.scores)
    buttons = [
        {"label": role, "method": "update", "args": [{"visible": [role == other for other in names]}]} for role in names
    ]
    figure.update_layout(
        xaxis={"title": "head", "dtick": 1},
        yaxis={"title": "layer"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.08, "yanchor": "bottom"}
        ],
        margin={"t": 80},
        height=560,
    )
    return figure
