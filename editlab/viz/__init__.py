"""Figures: plotly figures from results, and nothing else. They show nothing by themselves."""

from __future__ import annotations

from editlab.viz.conflicts import conflict_flow, conflict_shares, head_map, head_roles, pruning_curve
from editlab.viz.edits import batch_points, edit_probabilities
from editlab.viz.files import load_figures, page_html, save_figures
from editlab.viz.locate import trace_heatmap, trace_lines, with_points
from editlab.viz.memory import memory_exposures, memory_items, memory_losses, memory_retention
from editlab.viz.routing import routing_points
from editlab.viz.scores import score_points
from editlab.viz.style import COLOURS, DASHES, MARKERS

__all__ = [
    "COLOURS",
    "DASHES",
    "MARKERS",
    "batch_points",
    "conflict_flow",
    "conflict_shares",
    "edit_probabilities",
    "head_map",
    "head_roles",
    "load_figures",
    "memory_exposures",
    "memory_items",
    "memory_losses",
    "memory_retention",
    "page_html",
    "pruning_curve",
    "routing_points",
    "save_figures",
    "score_points",
    "trace_heatmap",
    "trace_lines",
    "with_points",
]
