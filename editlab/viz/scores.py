"""Figures of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.evaluation.statistics import Estimate


def score_points(scores: Mapping[str, Estimate], metric: str) -> go.Figure:
    """Runs down, one score across, with 95 % intervals."""
    import plotly.graph_objects as go

    names = [name if len(name) <= 44 else f"{name[:20]}...{name[-20:]}" for name in scores]
    means = [score.mean for score in scores.values()]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=[f"{i}  {name}" for i, name in enumerate(names, 1)],
            mode="markers",
            marker={"color": COLOURS[0], "size": 10},
            error_x={
                "array": [score.high - score.mean for score in scores.values()],
                "arrayminus": [score.mean - score.low for score in scores.values()],
            },
            customdata=[score.n for score in scores.values()],
            hovertemplate="%{y}<br>%{x:.4g}, n=%{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis_title=metric,
        yaxis={"autorange": "reversed", "automargin": True},
        margin={"t": 16, "r": 32},
        height=120 + 44 * len(means),
    )
    return figure
