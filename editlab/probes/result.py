"""What a probe of prompts gives: a sentence, a table, and what of the table a figure shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table

SHOWN = 40  # rows in the terminal


@dataclass(frozen=True)
class ProbeResult(Saved):
    """The result of one probe.

    Attributes:
        headline: what came out, in a sentence.
        rows: a row a finding.
        x, value: numeric columns of `rows`: what runs across in the figure, and what it shows.
        series: the column that tells the figure's lines apart.
    """

    headline: str
    rows: pd.DataFrame = field(repr=False)
    x: str
    value: str
    series: str

    def to_pandas(self) -> pd.DataFrame:
        """The rows, a copy."""
        return self.rows.copy()

    def plot(self) -> go.Figure:
        """`value` by `x`, a line a `series`."""
        from editlab.viz.probes import probe_lines

        return probe_lines(self)

    def table(self) -> Table:
        """The first rows for the terminal."""
        from rich.table import Table
        from rich.text import Text

        left = len(self.rows) - SHOWN
        table = Table(caption=f"{left} more rows; the run folder has them all." if left > 0 else None)
        for name in self.rows:
            table.add_column(str(name), overflow="fold")
        for row in self.rows.head(SHOWN).itertuples(index=False):
            table.add_row(*(Text(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row))
        return table

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self.headline)}</p>{self.rows.to_html(index=False, max_rows=SHOWN)}"
