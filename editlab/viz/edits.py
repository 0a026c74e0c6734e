"""Figures of edits: probabilities before and after, fact by fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editlab.viz.style import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from editlab.report import EditReport


def edit_probabilities(report: EditReport) -> go.Figure:
    """Prompts down, probability across: of the new and of the prompt's own answer, before (open) and after (filled)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    labels = [f"{i + 1} {r.kind}: {_short(r.prompt)}" for i, r in enumerate(report.rows)]
    of_role = {
        f"P({report.fact.target_new})": [r.p_new for r in report.rows],
        "P(own answer)": [r.p_true for r in report.rows],
    }
    labels = [f"{label} [{r.own}]" if r.own else label for label, r in zip(labels, report.rows, strict=True)]
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
                name=f"{role} {when}",
                mode="markers",
                marker={"color": colour, "symbol": f"{marker}{'' if i else '-open'}", "size": 10},
                hovertemplate=f"%{{y}}<br>{role} {when} %{{x:.2%}}<extra></extra>",
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
        figure.add_scatter(
            x=[changed / max(1, asked) for changed, asked in (r.disturbed for r in rows)],
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


def edits_so_far(reports: Sequence[EditReport]) -> go.Figure:
    """Over the first n facts, in the order of their edits: shares of them that fire, and of their neighbours changed.

    Both are as the run scored them: after its last edit where edits are kept, in mode single each under its own alone.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    kept = [[row.changed for row in r.rows if row.may_show_damage] for r in reports]
    parts = {"facts that fire": [[r.fires] for r in reports], "neighbours changed": kept}
    for i, (name, of_fact) in enumerate(parts.items()):
        y, true, n = [], 0, 0
        for flags in of_fact:
            true, n = true + sum(flags), n + len(flags)
            y.append(true / n if n else None)
        figure.add_scatter(
            x=list(range(1, len(y) + 1)),
            y=y,
            name=name,
            mode="lines+markers",
            line={"color": COLOURS[i], "dash": DASHES[i]},
            marker={"symbol": MARKERS[i]},
            hovertemplate=f"of the first %{{x}} facts: %{{y:.0%}}<extra>{name}</extra>",
        )
    figure.update_layout(
        xaxis={"title": "first facts, in the order of their edits", "rangemode": "tozero"},
        yaxis={"title": "share of them", "range": [-0.04, 1.04], "tickformat": ".0%"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        modebar={"orientation": "v"},
        margin={"t": 48, "r": 48},
    )
    return figure


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
