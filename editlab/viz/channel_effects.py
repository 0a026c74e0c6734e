"""Figures of channels that were tested: effects beside their controls, and the graph of heads that speak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.probes.channels.verdicts import Verdicts

MOST_EDGES = 200
COLOUR = {"q": COLOURS[0], "k": COLOURS[1], "v": COLOURS[2]}
DASH = {"verified": "solid", "edge-only": "dash", "not shown": "longdash", "refuted": "dot", "weight-only": "dot"}


def effects(tests: Verdicts) -> go.Figure:
    """Channels down, effect across: edge, node and their 95 % intervals; controls as small ticks."""
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [f"{t.channel} {t.status}" for t in tests.tested]
    for i, kind in enumerate(("edge", "node")):
        found = [getattr(t, kind) for t in tests.tested]
        points = [f.estimate for f in found]
        figure.add_scatter(
            x=[x for f in found for x in f.controls],
            y=[name for name, f in zip(names, found, strict=True) for _ in f.controls],
            mode="markers",
            name=f"{kind}: controls",
            marker={"symbol": "line-ns-open", "color": COLOURS[i], "size": 9, "opacity": 0.6},
        )
        figure.add_scatter(
            x=[p.mean for p in points],
            y=names,
            mode="markers",
            name=kind,
            marker={"symbol": MARKERS[i], "color": COLOURS[i], "size": 11},
            error_x={
                "array": [p.high - p.mean for p in points],
                "arrayminus": [p.mean - p.low for p in points],
            },
            customdata=[[p.n, f.base, f.q] for p, f in zip(points, found, strict=True)],
            hovertemplate="%{y}<br>%{x:+.3f} of %{customdata[1]:.3f}, n=%{customdata[0]}, q %{customdata[2]:.1e}"
            f"<extra>{kind}</extra>",
        )
    figure.add_vline(x=0, line_dash=DASHES[2])
    figure.update_layout(
        xaxis_title="what removing the source takes from the reader's margin",
        yaxis={"autorange": "reversed", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 48},
        height=180 + 60 * len(names),
    )
    return figure


def channel_graph(rows: pd.DataFrame, n_layers: int, n_heads: int) -> go.Figure:
    """Heads by layer (across) and number (down), a line per channel: wide if its score is high, whole if verified.

    Args:
        rows: columns source, target, mode, score, status; at most `MOST_EDGES` are drawn, the highest scores first.
    """
    import plotly.graph_objects as go

    from editlab.probes.channels.parts import Part

    rows = rows.nlargest(MOST_EDGES, "score")
    figure = go.Figure()
    seen: set[tuple[str, str]] = set()
    top = float(rows["score"].max()) if len(rows) else 1.0
    for row in rows.to_dict("records"):
        a, b = Part.parse(row["source"]), Part.parse(row["target"])
        key = (row["mode"], row["status"])
        figure.add_scatter(
            x=[a.layer, (a.layer + b.layer) / 2, b.layer],
            y=[a.head, (a.head + b.head) / 2 + 0.15, b.head],
            mode="lines+markers",
            line={
                "color": COLOUR[row["mode"]],
                "dash": DASH[row["status"]],
                "width": 1 + 5 * row["score"] / top,
                "shape": "spline",
            },
            marker={"size": [9, 0.1, 9], "symbol": [MARKERS[0], MARKERS[0], MARKERS[2]]},
            opacity=0.8,
            name=f"{row['mode'].upper()}, {row['status']}",
            legendgroup=str(key),
            showlegend=key not in seen,
            customdata=[[row["source"], row["target"]]] * 3,
            hovertemplate=f"{row['source']} → {row['target']} ({row['mode'].upper()}, {row['status']})"
            f"<br>score {row['score']:.3f}<extra></extra>",
        )
        seen.add(key)
    figure.update_layout(
        xaxis={"title": "layer", "range": [-0.5, n_layers - 0.5], "dtick": max(1, n_layers // 15)},
        yaxis={"title": "head", "range": [n_heads - 0.5, -0.5], "dtick": 1},
        height=520,
    )
    return figure


def lines(table: pd.DataFrame, x: str, y: str, by: str, title: str) -> go.Figure:
    """Lines with 95 % intervals (columns `low`, `high`), one per value of `by`."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (name, rows) in enumerate(table.groupby(by, sort=False)):
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            name=str(name),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]},
            marker={"symbol": MARKERS[i % len(MARKERS)]},
            error_y={"array": rows["high"] - rows[y], "arrayminus": rows[y] - rows["low"]},
        )
    figure.update_layout(title=title, xaxis_title=x, yaxis={"title": y, "rangemode": "tozero"})
    return figure
