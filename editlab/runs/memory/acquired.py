"""What `acquire` found: curves, effectivity and retainability by scenario and depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from editlab.display import text_table
from editlab.evaluation.statistics import Estimate
from editlab.probes.memory.acquisition import DEPTHS, Acquired, acquired, gain_floor
from editlab.runs.memory.acquire import CONTROL, SCENARIOS, AcquireSettings
from editlab.runs.memory.clustered import difference, over_clusters
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
                e = over_clusters(rise[t].to_numpy(), _passages(rise.index))
                numbers = {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n, "seeds": len(set(seeds))}
                out.append({"scenario": scenario, "depth": depth, "t": int(t), **numbers})
        return pd.DataFrame(out)

    def acquired(self, scenario: str, depth: str) -> Acquired:
        """The definitions of `editlab.probes.memory.acquisition` on the probes of a scenario and depth."""
        wide = self._wide(scenario, depth)
        return self._acquired(wide, scenario, self.floors[self._scheme(scenario)])

    def _scheme(self, scenario: str) -> tuple[int, ...]:
        """The updates of a scenario's injections."""
        return self.settings.injected[:1] if scenario == "once" else self.settings.injected

    def _acquired(self, wide: pd.DataFrame, scenario: str, floor: float) -> Acquired:
        after = (0, *spread(self.settings.after))
        lp = wide.to_numpy()
        return acquired(list(wide.index), lp, self._scheme(scenario), self.settings.window, after, floor)

    @cached_property
    def floors(self) -> dict[tuple[int, ...], float]:
        """By injections: the gain that a probe has to exceed, from all probes of passages that are never injected."""
        wide = self._wide(CONTROL)
        return {
            self._scheme(scenario): gain_floor(self._acquired(wide, scenario, 0.0).gain[:, 0]) for scenario in SCENARIOS
        }

    def _wide(self, scenario: str, depth: str | None = None) -> pd.DataFrame:
        """Times by probes."""
        rows = self.rows[self.rows["scenario"] == scenario]
        rows = rows if depth is None else rows[rows["depth"] == depth]
        return rows.pivot(index="t", columns=["depth", *PROBE], values="lp").dropna(axis=1)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """By scenario and depth: effectivity of the first and the last injection, decay per decade, tau, counts.

        `floor` is the mean effectivity, over the window of the first injection, of probes of that depth that are never
        injected; `above_floor` what the injected ones have more, with its interval. Intervals resample passages.
        """
        out = []
        asked = set(zip(self.rows["scenario"], self.rows["depth"], strict=True))
        for scenario in SCENARIOS:
            for depth in (d for d in DEPTHS if (scenario, d) in asked):
                found = self.acquired(scenario, depth)
                first, last = (self._effect(self._wide(scenario, depth), found, i) for i in (0, -1))
                above = difference(first, self._floor(scenario, depth))
                a, tau = found.decay()
                out.append(
                    {
                        "scenario": scenario,
                        "depth": depth,
                        "effectivity": first.mean,
                        "low": first.low,
                        "high": first.high,
                        "floor": first.mean - above.mean,
                        "above_floor": above.mean,
                        "above_low": above.low,
                        "above_high": above.high,
                        "effectivity_last": last.mean,
                        "decay_per_decade": a,
                        "tau": tau,
                        "n": int(found.kept.size),
                        "passages": len(set(_passages(self._wide(scenario, depth).columns))),
                        "left_out": int((~found.kept).sum()),
                        "censored": float(found.censored.mean()),
                    }
                )
        return pd.DataFrame(out)

    def _effect(self, wide: pd.DataFrame, found: Acquired, i: int) -> Estimate:
        return over_clusters(found.effectivity[i], _passages(wide.columns))

    def _floor(self, scenario: str, depth: str) -> Estimate:
        """Effectivity of what is never injected, of that depth or, if it has no probe of it, of all."""
        wide = self._wide(CONTROL, depth)
        wide = wide if wide.size else self._wide(CONTROL)
        return self._effect(wide, self._acquired(wide, scenario, 0.0), 0)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        rows = self.summary[self.summary["scenario"] == "paraphrase"].to_dict("records")
        each = ", ".join(
            f"{row['depth']} {row['effectivity']:+.2f} (above floor {row['above_floor']:+.2f}, {row['above_low']:+.2f} "
            f"to {row['above_high']:+.2f})"
            for row in rows
        )
        n = self.rows["passage"].nunique()
        return (
            f"One injection changes log-probability per token by {each} nats (paraphrase scenario; the floor is what "
            f"passages that are never injected reach in the same window, and they moved by {self.drift:+.2f} in the "
            f"whole run; {n} passages, {self.settings.seeds} seeds)."
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
                f"{r['above_floor']:+.2f} ({r['above_low']:+.2f} to {r['above_high']:+.2f})",
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
            "above the floor",
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
        says: list[str] = ["Intervals take the probes of a passage as one draw."]
        says.append(f"Passages that were never injected moved by {self.drift:+.2f} nats: style and drift.")
        says += self._of_passages()
        out, n = int(self.summary["left_out"].sum()), int(self.summary["n"].sum())
        floors = " or ".join(f"{x:.2f}" for x in sorted(set(self.floors.values())))
        controls = self._wide(CONTROL).shape[1]
        says.append(
            f"{out} of {n} probes gained no more than {floors} nats, which one of twenty of the {controls} probes of "
            "passages that are never injected may exceed in the same windows, and are left out of retainability."
        )
        if self.summary["censored"].max() > 0.5:
            says.append("Many maxima lie at their window's end (censored): use a longer interval or window.")
        if self.settings.seeds == 1:
            says.append("One seed: intervals have no run-to-run variance.")
        if self.summary["passages"].min() == 1:
            says.append("One passage of a scenario: its intervals are over probes and say nothing of other passages.")
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


def _passages(index: pd.Index) -> list[tuple[int, str]]:
    """The passage of each probe, with its seed."""
    return list(zip(index.get_level_values("seed"), index.get_level_values("passage"), strict=True))
