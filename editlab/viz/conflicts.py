"""Figures of knowledge conflicts: shares of answers, head maps, and what pruning does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.evaluation.statistics import Estimate
    from editlab.probes.conflicts.flow import Flow
    from editlab.probes.conflicts.heads import HeadMap
    from editlab.probes.conflicts.prune_results import Pruning
    from editlab.probes.conflicts.rates import Rates
    from editlab.runs.edited_conflicts import Edited

SOURCES = {"memory": COLOURS[0], "context": COLOURS[1], "other": "#999999"}
PATTERNS = {"memory": "", "context": "/", "other": "."}


def conflict_shares(rows: Sequence[Rates], title: str = "") -> go.Figure:
    """Conditions down, shares of answers from memory, context and neither across, with 95 % intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    labels = [row.condition for row in rows]
    for source, colour in SOURCES.items():
        found = [getattr(row, source) for row in rows]
        figure.add_bar(
            x=[e.mean for e in found],
            y=labels,
            name=source,
            orientation="h",
            marker={"color": colour, "pattern": {"shape": PATTERNS[source]}},
            customdata=[[e.low, e.high, e.n] for e in found],
            hovertemplate="%{y}: %{x:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%}, n=%{customdata[2]})"
            f"<extra>{source}</extra>",
        )
    figure.update_layout(
        barmode="stack",
        title=title or None,
        xaxis={"title": "share of answers", "range": [0, 1], "tickformat": ".0%"},
        yaxis={"autorange": "reversed", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        modebar={"orientation": "v"},
        margin={"t": 56, "r": 48},
        height=150 + 32 * len(labels),
    )
    return figure


def head_map(heads: HeadMap) -> go.Figure:
    """Layers across, heads down; diverging and centred on zero: memory's side against the context's."""
    import numpy as np
    import plotly.graph_objects as go

    mean, error = heads.mean, heads.error()
    n_layers, n_heads = mean.shape
    group = n_heads // heads.n_kv_heads
    bound = float(np.nanmax(np.abs(mean))) or 1.0
    labels = [f"{h} (kv {h // group})" if group > 1 else str(h) for h in range(n_heads)]
    roles = [[heads.role((layer, h)) or "not named" for layer in range(n_layers)] for h in range(n_heads)]
    figure = go.Figure(
        go.Heatmap(
            z=mean.T,
            x=list(range(n_layers)),
            y=labels,
            zmin=-bound,
            zmax=bound,
            colorscale="PuOr",
            customdata=np.dstack([error.T, np.array(roles, dtype=object)]),
            hovertemplate="layer %{x}, head %{y}<br>S %{z:+.3f} ± %{customdata[0]:.3f}, %{customdata[1]}"
            "<extra></extra>",
            colorbar={"title": "S: memory (+)<br>context (−)"},
        )
    )
    figure.update_layout(
        title=f"{heads.relation}, {heads.format}: {heads.settings.estimand} scores, {heads.n_subjects} subjects",
        xaxis={"title": "layer"},
        yaxis={"title": "query head", "autorange": "reversed"},
    )
    return figure


def head_roles(heads: HeadMap) -> go.Figure:
    """Every head by what it loses without the subject (across) and without the context's answer (down)."""
    import plotly.graph_objects as go

    table = heads.to_pandas()
    figure = go.Figure()
    for i, (role, rows) in enumerate(table.assign(role=table["role"].replace("", "not named")).groupby("role")):
        figure.add_scatter(
            x=rows["S_subject"],
            y=rows["S_context"],
            name=str(role),
            mode="markers",
            text=rows["head"],
            marker={"color": COLOURS[i % len(COLOURS)], "symbol": MARKERS[i % len(MARKERS)], "size": 9},
            hovertemplate="%{text}: S_subject %{x:+.2f}, S_context %{y:+.2f}<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(y=0, line_width=1)
    figure.add_vline(x=0, line_width=1)
    figure.update_layout(
        xaxis_title="S_subject (recall to the right)", yaxis_title="S_context (copy below, suppression above)"
    )
    return figure


def pruning_curve(found: Pruning) -> go.Figure:
    """Left, on validation subjects, shares by the number of pruned heads: K is chosen here, so it looks too good there.

    Right, on test subjects, the target's share unpruned and pruned, beside sets of heads that should not do it.
    """
    from plotly.subplots import make_subplots

    titles = ("validation subjects: K is chosen", "test subjects")
    figure = make_subplots(cols=2, column_widths=[0.6, 0.4], shared_yaxes=True, horizontal_spacing=0.04,
                           subplot_titles=titles)  # fmt: skip
    ks = [row.k for row in found.rows]
    series = {
        "memory": [row.rates.memory for row in found.rows],
        "context": [row.rates.context for row in found.rows],
        "other": [row.rates.other for row in found.rows],
    }
    for i, (name, values) in enumerate(series.items()):
        figure.add_scatter(
            x=ks,
            y=[v.mean for v in values],
            name=name,
            mode="lines+markers",
            line={"color": SOURCES[name], "dash": DASHES[i]},
            marker={"symbol": MARKERS[i], "size": 9},
            error_y=_bars(values),
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=ks,
        y=[row.recall for row in found.rows],
        name="closed-book recall kept",
        mode="lines+markers",
        line={"color": COLOURS[2], "dash": DASHES[3]},
        marker={"symbol": MARKERS[3], "size": 8},
        row=1,
        col=1,
    )
    to = found.settings.direction
    pruned = [row for row in found.tested if row.condition in {f"K={k}" for k in found.change}]
    tested = [getattr(row, to) for row in (found.base, *pruned)]
    figure.add_scatter(
        x=[row.condition for row in (found.base, *pruned)],
        y=[e.mean for e in tested],
        name=f"{to}, test",
        mode="markers",
        marker={"color": SOURCES[to], "symbol": MARKERS[4], "size": 11},
        error_y=_bars(tested),
        customdata=[e.n for e in tested],
        hovertemplate="%{x}: %{y:.1%} (n=%{customdata})<extra></extra>",
        row=1,
        col=2,
    )
    base = getattr(found.base, to).mean
    for control in found.controls:
        figure.add_scatter(
            x=[control.name] * len(control.rises),
            y=[base + rise for rise in control.rises],
            name=f"{control.name}, K={found.best.k}",
            mode="markers",
            marker={"symbol": "line-ew-open", "color": COLOURS[3], "size": 14},
            showlegend=False,
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="pruned heads, in ranked order", tickvals=ks, row=1, col=1)
    figure.update_xaxes(automargin=True, tickangle=-30, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", range=[-0.02, 1.05])
    figure.update_yaxes(title_text="share of answers", row=1, col=1)
    figure.update_layout(
        title=f"{found.relation}, {found.format}: pruning towards the {to}",
        modebar={"orientation": "v"},
        margin={"t": 96},
        height=520,
    )
    return figure


def _bars(values: Sequence[Estimate]) -> dict[str, list[float]]:
    return {"array": [v.high - v.mean for v in values], "arrayminus": [v.mean - v.low for v in values]}


def conflict_flow(found: Flow) -> go.Figure:
    """Layers across; above, the change of LD by what is taken away; below, LD of the stream itself."""
    from plotly.subplots import make_subplots

    table = found.to_pandas()
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for i, (measure, rows) in enumerate(table.groupby("measure", sort=False)):
        look = i % len(COLOURS)
        figure.add_scatter(
            x=rows["layer"],
            y=rows["LD"],
            name=str(measure),
            mode="lines+markers",
            line={"color": COLOURS[look], "dash": DASHES[look]},
            marker={"symbol": MARKERS[look]},
            error_y={"array": rows["high"] - rows["LD"], "arrayminus": rows["LD"] - rows["low"], "thickness": 1},
            row=2 if str(measure).startswith("lens") else 1,
            col=1,
        )
    figure.update_yaxes(title_text="change of LD", row=1, col=1)
    figure.update_yaxes(title_text="LD of the stream", row=2, col=1)
    figure.update_xaxes(title_text="layer", row=2, col=1)
    figure.update_layout(title=f"{found.relation}, {found.format}: who decides, layer by layer", height=640)
    return figure


def edited_conflicts(found: Edited) -> go.Figure:
    """Left: shares of answers before and after the edits. Right: every head's score before against after."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, column_widths=[0.5, 0.5], horizontal_spacing=0.16)
    for trace in conflict_shares(found.rows).data:
        figure.add_trace(trace, row=1, col=1)
    tables = [found.heads[name].to_pandas().set_index("head") for name in ("before", "after")]
    before, after = tables[0]["score"], tables[1]["score"].reindex(tables[0].index)
    figure.add_trace(
        go.Scatter(
            x=before,
            y=after,
            text=before.index,
            mode="markers",
            name="head",
            marker={"color": COLOURS[2], "symbol": MARKERS[2], "size": 8},
            hovertemplate="%{text}: before %{x:+.2f}, after %{y:+.2f}<extra></extra>",
        ),
        row=1,
        col=2,
    )
    figure.update_xaxes(title_text="share of answers", range=[0, 1], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text="S before", row=1, col=2)
    figure.update_yaxes(title_text="S after", row=1, col=2)
    figure.update_layout(barmode="stack", title=f"{found.method}: conflicts before and after {found.facts} edits")
    return figure
