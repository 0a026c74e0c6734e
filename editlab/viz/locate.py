"""Figures of causal traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.trace_results import Trace, TraceAverage


def trace_heatmap(trace: Trace) -> go.Figure:
    """Tokens down, layers across; colour is the mean probability with that state restored."""
    import html

    import numpy as np
    import plotly.graph_objects as go

    inside = range(*trace.subject)
    # Tokens may repeat, so they are numbered; those of the subject are marked.
    # Escaped, because plotly reads "<s>" as markup.
    labels = [
        f"{i} {html.escape(repr(text), quote=False)}{' *' if i in inside else ''}"
        for i, text in enumerate(trace.tokens)
    ]
    mean, low = trace.restored.mean(-1).T, float(trace.p_corrupt.mean())
    figure = go.Figure(
        go.Heatmap(
            z=mean,
            x=list(range(mean.shape[1])),
            y=labels,
            zmin=min(low, float(mean.min())),
            zmax=max(trace.p_clean, float(mean.max())),
            colorscale="Cividis",
            customdata=np.stack([trace.restored.std(-1).T, trace.effect.T, trace.noise.T], axis=-1),
            hovertemplate="layer %{x}, token %{y}<br>P restored %{z:.3f} (sd %{customdata[0]:.3f})<br>effect "
            "%{customdata[1]:+.3f}, noise up to %{customdata[2]:.3f}<extra></extra>",
            colorbar={"title": f"P({trace.answer.strip()})"},
        )
    )
    figure.update_layout(
        title=f"{trace.config.kind} restored: P({trace.answer.strip()}) {trace.p_clean:.1%} clean, {low:.1%} corrupted",
        xaxis_title="layer" if trace.config.kind == "residual" else "centre of the restored layers",
        yaxis={"autorange": "reversed", "title": "token (* subject)"},
    )
    return figure


def with_points(heatmap: go.Figure) -> go.Figure:
    """A heat map whose cells can be clicked: browsers report points, so each cell gets one, unseen until it is chosen.

    The points are numbered row by row of the map's `z`.
    """
    cells = heatmap.data[0]
    heatmap.add_scatter(
        x=[x for _ in cells.y for x in cells.x],
        y=[y for y in cells.y for _ in cells.x],
        mode="markers",
        marker={"symbol": "square-open", "size": 16, "color": COLOURS[1], "opacity": 0, "line": {"width": 3}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        customdata=[value for row in cells.z for value in row],
        hovertemplate="layer %{x}, token %{y}<br>P restored %{customdata:.3f}<extra></extra>",
        showlegend=False,
    )
    return heatmap


def trace_lines(average: TraceAverage) -> go.Figure:
    """Mean indirect effect by layer, one line a role of token, bands 95 %; hollow points are no more than noise."""
    import plotly.graph_objects as go

    table = average.to_pandas()
    figure = go.Figure()
    for i, (role, rows) in enumerate(table.groupby("role", sort=False)):
        rows = rows.dropna(subset=["effect", "low", "high"])
        if rows.empty:
            continue
        colour = COLOURS[i]
        symbols = [MARKERS[i] if above else f"{MARKERS[i]}-open" for above in rows["effect"] > rows["noise"]]
        figure.add_scatter(
            x=[*rows["layer"], *rows["layer"][::-1]],
            y=[*rows["high"], *rows["low"][::-1]],
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=rows["layer"],
            y=rows["effect"],
            name=f"{role} (n={int(rows['n'].max())})",
            mode="lines+markers",
            line={"color": colour, "dash": DASHES[i]},
            marker={"symbol": symbols},
            customdata=rows["noise"],
            hovertemplate="layer %{x}: %{y:.1%} (noise up to %{customdata:.1%})<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        title=f"{average.config.kind} restored, {len(average.effects)} facts",
        xaxis_title="layer",
        yaxis={"title": "indirect effect on P(answer)", "tickformat": ".0%"},
    )
    return figure
