"""Figures: plotly figures from results, and nothing else. They show nothing by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.evaluation.statistics import Estimate
    from editlab.probes.routing import Routing
    from editlab.probes.trace import Trace, TraceAverage
    from editlab.report import EditReport

# Okabe and Ito's colours that stand out on light and on dark; every series also has a dash and a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x")


def trace_heatmap(trace: Trace) -> go.Figure:
    """Tokens down, layers across; colour is the mean probability with that state restored."""
    import html

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


def edit_probabilities(report: EditReport) -> go.Figure:
    """Prompts down, probability across: of the new and of the true answer, before (open) and after (filled)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    labels = [f"{i + 1} {r.kind}: {_short(r.prompt)}" for i, r in enumerate(report.rows)]
    of_role = {"new": [r.p_new for r in report.rows], "true": [r.p_true for r in report.rows]}
    for (role, pairs), colour, marker in zip(of_role.items(), (COLOURS[1], COLOURS[0]), MARKERS[:2], strict=True):
        shown = [(label, pair) for label, pair in zip(labels, pairs, strict=True) if pair is not None]
        if not shown:
            continue
        figure.add_scatter(
            x=[x for _, (before, after) in shown for x in (before, after, None)],
            y=[y for label, _ in shown for y in (label, label, None)],
            mode="lines",
            line={"color": colour, "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
        for i, when in enumerate(("before", "after")):
            figure.add_scatter(
                x=[pair[i] for _, pair in shown],
                y=[label for label, _ in shown],
                name=f"P({role}) {when}",
                mode="markers",
                marker={"color": colour, "symbol": f"{marker}{'' if i else '-open'}", "size": 10},
                hovertemplate=f"%{{y}}<br>P({role}) {when} %{{x:.2%}}<extra></extra>",
            )
    figure.update_layout(
        xaxis={"title": "probability", "range": [-0.02, 1.02], "tickformat": ".0%"},
        yaxis={"categoryorder": "array", "categoryarray": labels[::-1], "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        modebar={"orientation": "v"},  # else it covers the legend
        margin={"t": 48, "r": 48},
        height=150 + 34 * len(labels),
    )
    return figure


def batch_points(reports: Sequence[EditReport]) -> go.Figure:
    """A point per fact: how probable its new answer is, against the share of its neighbours that changed."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (name, fires) in enumerate((("fires", True), ("does not fire", False))):
        rows = [r for r in reports if r.fires is fires]
        kept = [[row.changed for row in r.rows if row.kind in ("neighbour", "locality")] for r in rows]
        figure.add_scatter(
            x=[sum(k) / len(k) if k else 0.0 for k in kept],
            y=[(r.rows[0].p_new or (0.0, 0.0))[1] for r in rows],
            name=name,
            mode="markers",
            marker={"color": COLOURS[i], "symbol": MARKERS[i], "size": 10, "opacity": 0.8},
            text=[r.fact.text for r in rows],
            hovertemplate="%{text}<br>P(new) %{y:.1%}, %{x:.0%} of neighbours changed<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": "neighbours that answer differently", "range": [-0.04, 1.04], "tickformat": ".0%"},
        yaxis={"title": "P(new) after", "range": [-0.04, 1.04], "tickformat": ".0%"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        modebar={"orientation": "v"},
        margin={"t": 48, "r": 48},
        showlegend=True,
    )
    return figure


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


def save_figures(folder: Path, figures: Mapping[str, go.Figure]) -> None:
    """Write figures into a run folder, as plotly's JSON."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        (folder / "figures" / f"{name}.json").write_text(figure.to_json(), encoding="utf-8")


def load_figures(folder: Path) -> dict[str, go.Figure]:
    """The figures of a run folder by name; those that cannot be read are left out."""
    import plotly.io

    found = {}
    for path in sorted((folder / "figures").glob("*.json")):
        try:
            found[path.stem] = plotly.io.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def page_html(title: str, text: str, figures: Sequence[go.Figure] = ()) -> str:
    """A page that needs no network: `text` (HTML) and figures, with one copy of plotly for all of them."""
    import html

    drawn = [f.to_html(full_html=False, include_plotlyjs="inline" if i == 0 else False) for i, f in enumerate(figures)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .6em;text-align:left}</style>"
        f"<h1>{html.escape(title)}</h1>{text}{''.join(drawn)}</html>"
    )


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
