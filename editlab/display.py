"""Tables for notebooks and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of escaped texts."""
    import pandas as pd

    table = pd.DataFrame([[str(cell) for cell in row] for row in rows], columns=list(headers))
    with pd.option_context("display.max_colwidth", None):
        return table.to_html(index=False, border=0)


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of plain text, aligned, with no frame and no trailing space, so that runs can be diffed."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
