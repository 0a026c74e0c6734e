"""What `order` found: accuracy by condition and distance, with what the letters would give alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from editlab.data.stimuli.segments import bin_edges
from editlab.display import text_table
from editlab.evaluation.statistics import Estimate
from editlab.probes.memory.order import CHANCE, LEAST_MASS
from editlab.runs.memory.clustered import over_clusters
from editlab.runs.memory.curves import share_text
from editlab.runs.memory.order import CONDITIONS, OrderSettings
from editlab.runs.memory.result import MemoryResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = ("debiased", "raw", "says_a", "association", "recency", "bias")


@dataclass(frozen=True)
class OrderResult(MemoryResult):
    """Rows: one per seed, condition and pair of passages."""

    settings: OrderSettings

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Long table: condition, distance ("all", or words of a bin), measure, mean, low, high, n, seeds, chance."""
        out = []
        for condition in (c for c in CONDITIONS if c in set(self.rows["condition"])):
            rows = self.rows[self.rows["condition"] == condition]
            for distance, group in [("all", rows), *((self.bins[int(str(b))], g) for b, g in rows.groupby("bin"))]:
                for measure in (m for m in MEASURES if group[m].notna().all()):
                    e = _nested(group, measure)
                    numbers = {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n, "seeds": group["seed"].nunique()}
                    chance = 0.0 if measure == "bias" else CHANCE
                    where = {"condition": condition, "distance": distance, "measure": measure}
                    out.append({**where, **numbers, "chance": chance})
        return pd.DataFrame(out)

    @property
    def bins(self) -> list[str]:
        """The distances, in words: "20 to 37"."""
        edges = [math.ceil(e) for e in bin_edges(self.settings.words, self.settings.length)]
        return [f"{a} to {b - 1}" for a, b in pairwise(edges[:-1])] + [f"{edges[-2]} or more"]

    def value(self, condition: str, measure: str = "debiased", distance: str = "all") -> Estimate:
        """One number; NaN where there is none."""
        c = self.curve
        found = c[(c["condition"] == condition) & (c["measure"] == measure) & (c["distance"] == distance)]
        if found.empty:
            return Estimate(float("nan"), float("nan"), float("nan"), 0)
        r = found.iloc[0]
        return Estimate(r["mean"], r["low"], r["high"], int(r["n"]))

    @cached_property
    def effect(self) -> Estimate:
        """Debiased accuracy of studied less none, pair by pair: what study adds."""
        wide = self.rows.pivot(index=["seed", "item"], columns="condition", values="debiased")
        if "studied" not in wide:
            return Estimate(float("nan"), float("nan"), float("nan"), 0)
        gain = (wide["studied"] - wide["none"]).dropna()
        text = self.rows.drop_duplicates(["seed", "item"]).set_index(["seed", "item"])["text"].reindex(gain.index)
        return over_clusters(
            gain.to_numpy(), _texts(gain.index.get_level_values("seed"), text), within=(-1.0, 1.0), is_share=False
        )

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        told = ", ".join(f"{c} {share_text(self.value(c))}" for c in CONDITIONS if self.value(c).n)
        n, seeds = self.value("none").n, self.rows["seed"].nunique()
        # Nothing but the letters is counterbalanced: what real text's order gives away is measured, without the text.
        level = "chance 50 %" if self.settings.file is None else f"without the text {self.value('none').mean:.0%}"
        texts = len(self.rows.drop_duplicates(["seed", "text"]))
        return (
            f"Order of two passages, letters cancelled: {told} ({level}, n = {n} pairs, {texts} texts, {seeds} seeds); "
            f"the letter A is preferred in {self.value('none', 'says_a').mean:.0%} of questions without the text."
        )

    def to_pandas(self) -> pd.DataFrame:
        """The curve."""
        return self.curve

    def table(self) -> str:
        """Accuracy by condition and distance."""
        cells = []
        for (condition, distance), rows in self.curve.groupby(["condition", "distance"], sort=False):
            by = rows.set_index("measure")
            found = {m: Estimate(*by.loc[m, ["mean", "low", "high", "n"]]) for m in MEASURES if m in by.index}
            shares = [share_text(found[m]) if m in found else "-" for m in MEASURES[:-1]]
            cells.append([condition, distance, *shares, f"{found['bias'].mean:+.2f}"])
        heads = ["debiased", "raw", "says A", "by association", "first is likelier", "bias to A (nats)"]
        return text_table(["condition", "words apart", *heads], cells)

    def figures(self) -> dict[str, go.Figure]:
        """By name."""
        from editlab.viz.memory_order import memory_order

        return {"order": memory_order(self)}

    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""
        says: list[str] = []
        e = self.effect
        if e.n:
            says.append(f"Study adds {e.mean:+.1%} ({e.low:+.1%} to {e.high:+.1%}) to debiased accuracy, pair by pair.")
        loss = self.rows.groupby("condition")["text_loss"].mean()
        if "studied" in loss:
            says.append(
                f"The texts cost {loss['none']:.2f} nats a token before the study and {loss['studied']:.2f} after."
            )
        for condition, mass in self.rows.groupby("condition", sort=False)["mass"].mean().items():
            if mass < LEAST_MASS:
                says.append(
                    f"Asked '{condition}', both letters together get only {mass:.1%}: the model answers something else."
                )
        says.append(
            "First is likelier: a control that must stay near one half; so must 'none' where events are invented."
        )
        if self.rows["seed"].nunique() == 1:
            says.append("One seed: intervals have no run-to-run variance.")
        says.append("Intervals take the pairs of a text as one draw.")
        return says


def _nested(group: pd.DataFrame, measure: str) -> Estimate:
    within = None if measure == "bias" else (0.0, 1.0)
    return over_clusters(group[measure].to_numpy(float), _texts(group["seed"], group["text"]), within=within)


def _texts(seed: Iterable[int], text: Iterable[int]) -> list[tuple[int, int]]:
    """The text of each pair; those of other seeds are other texts."""
    return list(zip(seed, text, strict=True))
