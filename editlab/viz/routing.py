"""Figures of side memories: who answers which prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.routing import Routing


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
