"""What `acquire` found: curves, effectivity and retainability by scenario and depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from editlab.display import text_table
from editlab.evaluation.statistics import Estimate, estimate_nested
from editlab.probes.memory.acquisition import DEPTHS, LEAST_GAIN, Acquired, acquired
from editlab.runs.memory.acquire import CONTROL, SCENARIOS, AcquireSettings
from editlab.runs.memory.result import MemoryResult
from editlab.runs.memory.settings import spread

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROBE = ["seed", "passage", "probe"]


@dataclass(frozen=True)
class AcquireResult(MemoryResult):
    """Rows: one per seed, time and probe."""

    settings: AcquireSettings

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Rise of log-probability over t = 0: scenario, depth, t, mean, low, high, n, seeds."""
        out = []
        for (scenario, depth), group in self.rows.groupby(["scenario", "depth"], sort=False):
            wide = group.pivot(index=PROBE, columns="t", values="lp").dropna()
            rise = wide.sub(wide[0], axis=0)
            seeds = rise.index.get_level_values("seed")
            for t in rise.columns:
                e = estimate_nested([rise[t][seeds == s].to_list() for s in sorted(set(seeds))])
                numbers = {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n, "seeds": len(set(seeds))}
                out.append({"scenario": scenario, "depth": depth, "t": int(t), **numbers})
        return pd.DataFrame(out)

    def acquired(self, scenario: str, depth: str) -> Acquired:
        """The definitions of `editlab.probes.memory.acquisition` on the probes of a scenario and depth."""
        group = self.rows[(self.rows["scenario"] == scenario) & (self.rows["depth"] == depth)]
        wide = group.pivot(index="t", columns=PROBE, values="lp").dropna(axis=1)
        injected = self.settings.injected[:1] if scenario == "once" else self.settings.injected
        after = (0, *spread(self.settings.after))
        return acquired(list(wide.index), wide.to_numpy(), injected, self.settings.window, after)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """By scenario and depth: effectivity of the first and the last injection, decay per decade, tau, counts."""
        out = []
        asked = set(zip(self.rows["scenario"], self.rows["depth"], strict=True))
        for scenario in SCENARIOS:
            for depth in (d for d in DEPTHS if (scenario, d) in asked):
                found = self.acquired(scenario, depth)
                first, last = self._effect(found, scenario, depth, 0), self._effect(found, scenario, depth, -1)
                a, tau = found.decay()
                out.append(
                    {
                        "scenario": scenario,
                        "depth": depth,
                        "effectivity": first.mean,
                        "low": first.low,
                        "high": first.high,
                        "effectivity_last": last.mean,
                        "decay_per_decade": a,
                        "tau": tau,
                        "n": int(found.kept.size),
                        "left_out": int((~found.kept).sum()),
                        "censored": float(found.censored.mean()),
                    }
                )
        return pd.DataFrame(out)

    def _effect(self, found: Acquired, scenario: str, depth: str, i: int) -> Estimate:
        group = self.rows[(self.rows["scenario"] == scenario) & (self.rows["depth"] == depth) & (self.rows["t"] == 0)]
        seeds = group.sort_values(PROBE)["seed"].to_numpy()
        values = found.effectivity[i]
        return estimate_nested([values[seeds == s].tolist() for s in np.unique(seeds)])

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        rows = self.summary[self.summary["scenario"] == "paraphrase"].to_dict("records")
        each = ", ".join(f"{row['depth']} {row['effectivity']:+.2f}" for row in rows)
        n = self.rows["passage"].nunique()
        return (
            f"One injection changes log-probability per token by {each} nats (paraphrase scenario; never injected "
            f"{self.drift:+.2f} in the whole run; {n} passages, {self.settings.seeds} seeds)."
        )

    @property
    def drift(self) -> float:
        """Rise of the passages that were never injected, from the first to the last probe."""
        c = self.curve[self.curve["scenario"] == CONTROL]
        return float(c[c["t"] == c["t"].max()]["mean"].mean())

    def to_pandas(self) -> pd.DataFrame:
        """The summary."""
        return self.summary

    def table(self) -> str:
        """The summary as text."""
        cells = [
            [
                r["scenario"],
                r["depth"],
                f"{r['effectivity']:+.2f}" + ("" if r["n"] < 2 else f" ({r['low']:+.2f} to {r['high']:+.2f})"),
                f"{r['effectivity_last']:+.2f}",
                f"{r['decay_per_decade']:.2f}",
                f"{r['tau']:.3g}",
                r["n"],
                r["left_out"],
                f"{r['censored']:.0%}",
            ]
            for r in self.summary.to_dict("records")
        ]
        heads = [
            "scenario",
            "depth",
            "effectivity, first (nats)",
            "last",
            "lost per decade",
            "tau",
            "probes",
            "left out",
        ]
        return text_table([*heads, "censored"], cells)

    def figures(self) -> dict[str, go.Figure]:
        """By name."""
        from editlab.viz.memory import memory_acquisition, memory_retainability

        return {"acquisition": memory_acquisition(self), "retainability": memory_retainability(self)}

    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""
        says: list[str] = []
        says.append(f"Passages that were never injected moved by {self.drift:+.2f} nats: style and drift.")
        says += self._of_passages()
        out, n = int(self.summary["left_out"].sum()), int(self.summary["n"].sum())
        says.append(f"{out} of {n} probes gained under {LEAST_GAIN} nat and are left out of retainability.")
        if self.summary["censored"].max() > 0.5:
            says.append("Many maxima lie at their window's end (censored): use a longer interval or window.")
        if self.settings.seeds == 1:
            says.append("One seed: intervals are over probes only, with no run-to-run variance.")
        return says

    def _of_passages(self) -> list[str]:
        """What the passages themselves do not allow to be said."""
        says = []
        injected = self.rows[self.rows["scenario"] != CONTROL]
        if (injected.loc[injected["scenario"] == "paraphrase", "wordings"] == 1).all():
            says.append("The passages come without paraphrases: there the passage itself was injected every time.")
        deep = injected[injected["depth"] == DEPTHS[2]]
        first = deep[deep["t"] == 0]
        loose = first[first["verbatim"] == 0]
        if len(loose) < len(first):
            said = (
                f"{len(first) - len(loose)} of {len(first)} compositional targets stand in their passage word for word"
            )
            if len(loose):
                last = deep[(deep["t"] == deep["t"].max()) & (deep["verbatim"] == 0)]
                said += f"; the others rose by {last['lp'].mean() - loose['lp'].mean():+.2f} nats in the whole run"
            says.append(f"{said}.")
        return says
