"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of escaped texts."""
    import pandas as pd

    table = pd.DataFrame([[str(cell) for cell in row] for row in rows], columns=list(headers))
    with pd.option_context("display.max_colwidth", None):
        return table.to_html(index=False, border=0)
