"""What all studies of memory give: rows as they were measured, and what is made of them."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class MemoryResult(Saved, ABC):
    """A finished study.

    Attributes:
        rows: as they were measured; what one stands for is the study's to say.
        settings: of the study. model: its name.
        aborted: courses that had to end, and why.
    """

    rows: pd.DataFrame
    settings: Any
    model: str
    aborted: tuple[tuple[str, str], ...] = ()

    @property
    @abstractmethod
    def headline(self) -> str:
        """One sentence with the numbers that matter."""

    @abstractmethod
    def to_pandas(self) -> pd.DataFrame:
        """The main table."""

    @abstractmethod
    def table(self) -> str:
        """The main numbers as text."""

    @abstractmethod
    def figures(self) -> dict[str, go.Figure]:
        """By name, the most telling one first."""

    @abstractmethod
    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""

    def plot(self) -> go.Figure:
        """The most telling figure."""
        return next(iter(self.figures().values()))

    def remarks(self) -> list[str]:
        """What a reader must know of the numbers."""
        return [*(f"{name}: ended early, {why}." for name, why in self.aborted), *self.reservations()]

    def shown(self) -> list[pd.DataFrame]:
        """The tables that a notebook draws."""
        return [self.to_pandas()]

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(remark)}</li>" for remark in self.remarks())
        tables = "".join(table.to_html(index=False) for table in self.shown())
        return f"<p>{html.escape(self.headline)}</p><ul>{notes}</ul>{tables}"
