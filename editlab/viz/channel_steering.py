"""Figures of a steered subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.probes.channels.steer import Chart

MARKERS_3D = ("circle", "square", "diamond", "cross", "x", "circle-open")


def chart_points(chart: Chart) -> go.Figure:
    """Points of the subspace by the place in the list that they pick; what prompts have in grey. Up to three axes."""
    import plotly.graph_objects as go

    table = chart.to_pandas()
    m = min(3, chart.points.shape[1])
    axes = ("x", "y", "z")[:m]
    figure = go.Figure()

    def add(values: object, name: str, colour: str, marker: int, text: object = None) -> None:
        data = {axis: values[:, i] for i, axis in enumerate(axes)}  # type: ignore[index]
        if m == 1:
            data["y"] = text if text is not None else [0.0] * len(values)  # type: ignore[arg-type]
        symbols = MARKERS_3D if m == 3 else MARKERS
        kind = go.Scatter3d if m == 3 else go.Scatter
        style = {"color": colour, "symbol": symbols[marker % len(symbols)], "size": 4 if m == 3 else 9}
        figure.add_trace(kind(**data, mode="markers", name=name, marker=style))

    for place in sorted(set(table["place"].tolist())):
        rows = table[table["place"] == place]
        at = rows.index.to_numpy()
        add(chart.points[at], f"place {place}", COLOURS[place % len(COLOURS)], place, rows["share"].to_numpy())
    add(chart.observed, "prompts as they are", "grey", 0)
    title = chart.headline
    names = [str(part) for part in chart.subspace.parts]
    if m == 3:
        figure.update_layout(title=title, scene={f"{a}axis": {"title": n} for a, n in zip(axes, names, strict=False)})
    else:
        figure.update_layout(title=title, xaxis_title=names[0], yaxis_title=names[1] if m == 2 else "share of prompts")
    return figure
