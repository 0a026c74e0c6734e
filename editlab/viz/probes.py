"""The figure of a probe of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.result import ProbeResult

MOST = 12  # lines; more cannot be told apart


def probe_lines(result: ProbeResult) -> go.Figure:
    """The result's `value` by its `x`, a line for each of the first series; the other columns on hover."""
    import plotly.graph_objects as go

    figure = go.Figure()
    others = [name for name in result.rows if name not in (result.x, result.value, result.series)]
    hover = "".join(f"<br>{name} %{{customdata[{i}]}}" for i, name in enumerate(others))
    for i, (name, rows) in enumerate(list(result.rows.groupby(result.series, sort=False))[:MOST]):
        figure.add_scatter(
            x=rows[result.x],
            y=rows[result.value],
            name=str(name),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]},
            marker={"symbol": MARKERS[i % len(MARKERS)]},
            customdata=rows[others].astype(str).to_numpy(),
            hovertemplate=f"{result.x} %{{x}}, {result.value} %{{y:.4g}}{hover}<extra>%{{fullData.name}}</extra>",
        )
    figure.update_layout(
        xaxis_title=result.x,
        yaxis_title=result.value,
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 48, "r": 48},
    )
    return figure
