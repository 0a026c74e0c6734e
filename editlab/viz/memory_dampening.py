"""Figures of forgetting by dampening."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.memory import LEGEND, add_band
from editlab.viz.style import COLOURS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.runs.memory.unlearn import UnlearnResult


def memory_dampening(result: UnlearnResult) -> go.Figure:
    """Loss of what is to be forgotten, of what is kept and of what was never studied, against alpha."""
    import plotly.graph_objects as go

    figure = go.Figure()
    curve = result.curve
    dampened = curve[curve["state"] == "dampened"]
    for i, role in enumerate(dict.fromkeys(curve["role"])):
        rows = dampened[dampened["role"] == role].rename(
            columns={"loss": "mean", "loss_low": "low", "loss_high": "high"}
        )
        add_band(figure, rows["alpha"], rows, role, i)
    for state in ("before", "studied"):
        level = curve[(curve["state"] == state) & (curve["role"] == "forget")]["loss"].iloc[0]
        what = f"to forget, {'before the study' if state == 'before' else 'after it'}"
        figure.add_hline(y=level, line_dash="dash", line_color="gray", annotation_text=what)
    figure.update_layout(
        title={"text": f"{result.model}: {result.settings.seeds} seeds; bands 95 %, seeds and texts", "y": 0.98},
        xaxis={"type": "log", "autorange": "reversed", "title": "alpha (smaller dampens more weights)"},
        yaxis={"title": "mean loss (nats a token)"},
        legend=LEGEND,
        margin={"t": 90},
    )
    return figure


def memory_frontier(result: UnlearnResult) -> go.Figure:
    """What is lost of the kept texts against what is forgotten, a point an alpha; on the diagonal both fare alike."""
    import plotly.graph_objects as go

    f = result.frontier
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="nothing told apart", line={"color": "gray", "dash": "dash"}
    )
    figure.add_scatter(
        x=f["forgotten"],
        y=f["lost"],
        name="alpha",
        mode="lines+markers+text",
        text=[f"{a:g}" for a in f["alpha"]],
        textposition="bottom right",
        line={"color": COLOURS[0]},
        hovertemplate="alpha %{text}: %{x:.0%} forgotten, %{y:.0%} of the kept lost<extra></extra>",
    )
    figure.add_vline(x=1, line_dash="dot", line_color="gray", annotation_text="as before the study")
    figure.update_layout(
        title={"text": f"{result.model}: below the line is selective", "y": 0.98},
        xaxis={"title": "share of the forgotten texts' gain that is gone", "tickformat": ".0%"},
        yaxis={"title": "share of the kept texts' gain that is gone", "tickformat": ".0%"},
        legend=LEGEND,
        margin={"t": 90},
    )
    return figure
