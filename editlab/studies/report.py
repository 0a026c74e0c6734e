"""A study as one page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from editlab.display import html_table
from editlab.evaluation import metrics
from editlab.studies.results import CAPTION, StudyResult
from editlab.viz.files import page_html

if TYPE_CHECKING:
    import plotly.graph_objects as go


def page(result: StudyResult, title: str, figures: Mapping[str, go.Figure]) -> str:
    """What was found, run by run, what was asked, and what each number means; figures below."""
    parts = [f"<p>{html.escape(result.headline)}</p>", html_table(*result.cells()), f"<p>{html.escape(CAPTION)}</p>"]
    if result.failed:
        parts += ["<h2>Runs that failed</h2>", html_table(("run", "reason"), result.failed.items())]
    parts += ["<h2>Every run</h2>", html_table(*result.cells(seeds=True)), "<h2>What the numbers are</h2>"]
    cards = [metrics.find(name.split("[")[0]).card for name in result.metrics if not name.startswith("lm_eval/")]
    rows = [
        (c.name, c.title, c.formula, c.better, "" if c.chance is None else f"{c.chance:g}", c.source) for c in cards
    ]
    parts.append(html_table(("metric", "what", "formula", "better", "chance", "source"), dict.fromkeys(rows)))
    plan = yaml.safe_dump(result.plan.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    parts.append(f"<h2>The study's file</h2><pre>{html.escape(plan)}</pre>")
    return page_html(title, "".join(parts), list(figures.values()))
