"""Figures: plotly figures from results, and nothing else. They show nothing by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.routing import Routing
    from editlab.probes.trace import Trace, TraceAverage

# Okabe and Ito's colours that stand out on light and on dark; every series also has a dash and a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x")


def trace_heatmap(trace: Trace) -> go.Figure:
    """Tokens down, layers across; colour is the mean probability with that state restored."""
    import plotly.graph_objects as go

    inside = range(*trace.subject)
    # Tokens may repeat, so they are numbered; those of the subject are marked.
    labels = [f"{i} {text!r}{' *' if i in inside else ''}" for i, text in enumerate(trace.tokens)]
    mean, low = trace.restored.mean(-1).T, float(trace.p_corrupt.mean())
    figure = go.Figure(
        go.Heatmap(
            z=mean,
            x=list(range(mean.shape[1])),
            y=labels,
            zmin=min(low, float(mean.min())),
            zmax=max(trace.p_clean, float(mean.max())),
            colorscale="Cividis",
            customdata=trace.restored.std(-1).T,
            hovertemplate="layer %{x}, token %{y}<br>P restored %{z:.3f} (sd %{customdata:.3f})<extra></extra>",
            colorbar={"title": f"P({trace.answer.strip()})"},
        )
    )
    figure.update_layout(
        title=f"{trace.config.kind} restored: P({trace.answer.strip()}) {trace.p_clean:.1%} clean, {low:.1%} corrupted",
        xaxis_title="layer" if trace.config.kind == "residual" else "centre of the restored layers",
        yaxis={"autorange": "reversed", "title": "token (* subject)"},
    )
    return figure


def routing_points(routing: Routing) -> go.Figure:
    """Prompts down, indicator over threshold across; beyond 1 a side memory answers."""
    import plotly.graph_objects as go

    table = routing.to_pandas()
    figure = go.Figure()
    for i, (answers, rows) in enumerate(table.groupby("answers", sort=True)):
        figure.add_scatter(
            x=rows["margin"],
            y=rows["prompt"],
            name=str(answers),
            mode="markers",
            marker={"color": COLOURS[i % len(COLOURS)], "symbol": MARKERS[i % len(MARKERS)], "size": 10},
            customdata=rows["why"],
            hovertemplate="%{y}<br>%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.add_vline(x=1, line_dash="dash", annotation_text="threshold")
    figure.update_layout(xaxis_title="indicator over threshold", yaxis={"autorange": "reversed"})
    return figure


def trace_lines(average: TraceAverage) -> go.Figure:
    """Mean indirect effect by layer, one line a role of token, bands 95 %."""
    import plotly.graph_objects as go

    table = average.to_pandas()
    figure = go.Figure()
    for i, (role, rows) in enumerate(table.groupby("role", sort=False)):
        rows = rows.dropna()
        if rows.empty:
            continue
        colour = COLOURS[i]
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
            marker={"symbol": MARKERS[i]},
        )
    figure.update_layout(
        title=f"{average.config.kind} restored, {len(average.effects)} facts",
        xaxis_title="layer",
        yaxis={"title": "indirect effect on P(answer)", "tickformat": ".0%"},
    )
    return figure
