"""What pruning heads gives: every K on validation subjects, the chosen ones on test subjects, beside their controls."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from editlab.evaluation.statistics import Paired
from editlab.hooks.heads import Head, head_name
from editlab.probes.conflicts.rates import Rates
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.probes.conflicts.prune import PruneSettings


RANDOM = "random heads of the same layers"


@dataclass(frozen=True)
class KRow:
    """One K on validation subjects.

    Attributes:
        target: share of answers that are the target's. log_p: mean log-probability of the target.
        recall: closed-book answers kept, of those the unpruned model gives. perplexity: over the unpruned model's.
    """

    k: int
    heads: tuple[Head, ...]
    rates: Rates
    target: float
    log_p: float
    recall: float
    perplexity: float
    safe: bool


@dataclass(frozen=True)
class Control:
    """Rises of the target share by sets of heads that should not do it."""

    name: str
    rises: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the sets."""
        return float(np.mean(self.rises))

    @property
    def spread(self) -> tuple[float, float]:
        """Between which nineteen of twenty sets lie; NaN for a single one."""
        if len(self.rises) < 2:
            return float("nan"), float("nan")
        low, high = np.percentile(self.rises, [2.5, 97.5])
        return float(low), float(high)


@dataclass(frozen=True)
class Pruning(Saved):
    """A choice of heads and what it does to test subjects.

    Attributes:
        rows: every K on validation subjects. safe: the best K that keeps recall and perplexity; None if none does.
        best: the best K of all. base: unpruned test rates. ceiling: closed-book rates of the same items.
        tested: rates on test subjects by name ("K=5", "agreeing, K=5"). change: of the target share by K, for best
            and safe. costs: of the same, recall, perplexity and kl. controls: for the best K.
    """

    settings: PruneSettings
    rows: tuple[KRow, ...]
    safe: KRow | None
    best: KRow
    base: Rates
    ceiling: Rates
    tested: tuple[Rates, ...]
    change: dict[int, Paired]
    costs: dict[int, dict[str, float]]
    controls: tuple[Control, ...]
    items: int
    relation: str
    format: str
    model: str

    @property
    def random(self) -> Control | None:
        """What random heads of the same layers do; None if none were tried."""
        return next((control for control in self.controls if control.name == RANDOM), None)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        to = self.settings.direction
        before = getattr(self.base, to)
        after = getattr(next(r for r in self.tested if r.condition == f"K={self.best.k}"), to)
        found = self.change[self.best.k].difference
        safe = (
            "no K keeps recall and perplexity"
            if self.safe is None
            else f"K={self.safe.k} is the best that keeps recall and perplexity"
            f" ({self.change[self.safe.k].difference.mean:+.0%})"
        )
        chance = f"{self.random.mean:+.0%}" if self.random else "not tried"
        return (
            f"Pruning {self.best.k} heads towards the {to}: {before.mean:.0%} -> {after.mean:.0%} of test answers "
            f"({found.mean:+.0%}, 95 % {found.low:+.0%} to {found.high:+.0%}; random heads {chance}; "
            f"{self.base.memory.n} subjects); {safe}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """Test rows: unpruned, pruned, ceiling; controls with the spread of their sets instead of an interval."""
        import pandas as pd

        to = self.settings.direction
        rows = [r.to_record() for r in (self.base, *self.tested, self.ceiling)]
        base = getattr(self.base, to).mean
        rows += [
            {
                "condition": f"{c.name}, K={self.best.k}",
                "items": self.items,
                "subjects": self.base.memory.n,
                to: base + c.mean,
                f"{to}_low": base + c.spread[0],
                f"{to}_high": base + c.spread[1],
            }
            for c in self.controls
        ]
        return pd.DataFrame(rows)

    def validation(self) -> pd.DataFrame:
        """One row per K on validation subjects."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "k": row.k,
                    "heads": " ".join(head_name(h) for h in row.heads),
                    **{k: v for k, v in row.rates.to_record().items() if k != "condition"},
                    "target_log_p": row.log_p,
                    "recall": row.recall,
                    "perplexity": row.perplexity,
                    "safe": row.safe,
                }
                for row in self.rows
            ]
        )

    def plot(self) -> go.Figure:
        """Shares against K on validation subjects; beside them what was chosen, and its controls, on test subjects."""
        from editlab.viz.conflicts import pruning_curve

        return pruning_curve(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"
