"""What came of testing channels: effects with their controls, a status each, and a table of all."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from editlab.evaluation.statistics import Estimate
from editlab.probes.channels.intervals import clustered
from editlab.probes.channels.parts import Channel
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Status = Literal["verified", "edge-only", "not shown", "refuted", "weight-only"]
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Effect:
    """What an intervention did.

    Attributes:
        values: (P,) per prompt, before minus after. base: the mean before.
        controls: (C,) means of the controls' effects. p: of the mean being 0; q: corrected over channels.
    """

    values: np.ndarray
    groups: np.ndarray
    base: float
    controls: np.ndarray
    p: float
    seed: int = 0
    q: float = float("nan")

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return clustered(self.values, self.groups, seed=self.seed)

    @property
    def bound(self) -> float:
        """What 95 % of the controls stay below, in size."""
        return float(np.quantile(np.abs(self.controls), 0.95)) if len(self.controls) else float("nan")

    @property
    def by_template(self) -> dict[int, float]:
        """The mean for each template."""
        return {int(g): float(self.values[self.groups == g].mean()) for g in np.unique(self.groups)}

    @property
    def agreeing(self) -> int:
        """Templates whose mean has the sign of the whole."""
        return sum(np.sign(x) == np.sign(self.values.mean()) for x in self.by_template.values())

    @property
    def holds(self) -> bool:
        """Not 0, significantly, and beyond the controls."""
        e = self.estimate
        away = e.low > 0 or e.high < 0
        return bool(away and self.q < LEVEL and abs(e.mean) > self.bound)

    def record(self, name: str) -> dict[str, Any]:
        """Plain values under a common name."""
        e = self.estimate
        return {
            name: e.mean,
            f"{name}_low": e.low,
            f"{name}_high": e.high,
            f"{name}_base": self.base,
            f"{name}_controls95": self.bound,
            f"{name}_q": self.q,
        }


@dataclass(frozen=True, eq=False)
class Verdict:
    """One channel, tested.

    Attributes:
        weights: score, rank, p of the scan; NaN without one.
        edge, node: effects on the reader's margin (for mode v on the logit difference).
        answer: the node's effect on the logit difference.
        kl: at END, of the node. perplexity: before and after, NaN where not measured.
        equivalence: the size of an effect on the edge that counts as none; 0: nothing does, as in results of old.
    """

    channel: Channel
    weights: dict[str, float]
    edge: Effect
    node: Effect
    answer: Effect
    kl: float
    perplexity: tuple[float, float]
    is_outlier: bool
    equivalence: float = 0.0

    @property
    def status(self) -> Status:
        """One of those that the top of `causal.py` defines."""
        e = self.edge.estimate
        if -self.equivalence < e.low and e.high < self.equivalence:
            return "refuted"
        if not self.edge.holds:
            return "not shown"
        return "verified" if self.node.holds and self.is_outlier else "edge-only"

    @property
    def why(self) -> str:
        """What is missing for "verified", or "": the rest holds."""
        if self.status == "refuted":
            return f"the edge's whole interval lies within ±{self.equivalence:.3g}"
        lacks = [
            name
            for name, holds in (("weights", self.is_outlier), ("edge", self.edge.holds), ("node", self.node.holds))
            if not holds
        ]
        return f"does not hold: {', '.join(lacks)}" if lacks else ""

    @property
    def edge_share(self) -> float:
        """The edge's effect over the node's."""
        node = self.node.estimate.mean
        return self.edge.estimate.mean / node if node else float("nan")

    @property
    def is_repaired(self) -> bool:
        """The edge does twice what the node does: later heads make up for the loss."""
        return self.edge.holds and abs(self.edge.estimate.mean) > 2 * abs(self.node.estimate.mean)

    def record(self) -> dict[str, Any]:
        """A row of a table."""
        c = self.channel
        return {
            "source": str(c.source),
            "target": str(c.target),
            "mode": c.mode,
            "status": self.status,
            "why": self.why,
            **self.weights,
            **self.edge.record("edge"),
            "edge_equivalence": self.equivalence,
            **self.node.record("node"),
            **self.answer.record("logit"),
            "edge_share": self.edge_share,
            "templates": len(self.edge.by_template),
            "templates_agree": sum(
                np.sign(x) == np.sign(self.edge.estimate.mean) for x in self.edge.by_template.values()
            ),
            "n": len(self.edge.values),
            "controls": len(self.edge.controls),
            "kl": self.kl,
            "perplexity_before": self.perplexity[0],
            "perplexity_after": self.perplexity[1],
        }


@dataclass(frozen=True, eq=False)
class Verdicts(Saved):
    """Channels that were tested together."""

    tested: list[Verdict]
    task: str
    config: dict[str, Any]
    model: str

    def to_pandas(self) -> pd.DataFrame:
        """A row per channel."""
        import pandas as pd

        return pd.DataFrame([t.record() for t in self.tested])

    @property
    def headline(self) -> str:
        """One sentence."""
        counts = {s: sum(t.status == s for t in self.tested) for s in get_args(Status)}
        said = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        strongest = max(self.tested, key=lambda t: abs(t.edge.estimate.mean), default=None)
        if strongest is None:
            return "No channel was tested."
        e = strongest.edge.estimate
        return (
            f"{len(self.tested)} channels on {self.task}: {said}. Strongest edge {strongest.channel}: "
            f"{e.mean:+.3f} ({e.low:+.3f} to {e.high:+.3f}, n={e.n}) of {strongest.edge.base:.3f}; controls up to "
            f"{strongest.edge.bound:.3f}."
        )

    def plot(self) -> go.Figure:
        """Effects with intervals, beside their controls."""
        from editlab.viz.channel_effects import effects

        return effects(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"
