"""Figures on disk: in run folders, and as pages that need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from editlab.state.files import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def save_figures(folder: Path, figures: Mapping[str, go.Figure]) -> None:
    """Write figures into a run folder, as plotly's JSON."""
    for name, figure in figures.items():
        write_text(folder / "figures" / f"{name}.json", figure.to_json())


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
