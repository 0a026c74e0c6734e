"""What `survive` found: how taught facts fade, engine by engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from editlab.display import text_table
from editlab.evaluation.statistics import Estimate
from editlab.probes.memory.acquisition import LEAST_GAIN
from editlab.probes.memory.survival import Lifetimes, holm
from editlab.runs.memory.clustered import over_clusters
from editlab.runs.memory.curves import share_text
from editlab.runs.memory.result import MemoryResult
from editlab.runs.memory.survive import LOADED, MATCH, MATCHED, TRAIN, SurviveSettings, matched_to

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = {
    "recall": "exact",
    "recognition": "recognised",
    "recall of paraphrases": "paraphrased",
    "neighbours as before": "neighbours",
}
OF_STATE = {"weight change kept": "kept", "prompts routed": "routed", "loss of others": "control_loss"}


@dataclass(frozen=True)
class SurviveResult(MemoryResult):
    """Rows: one per engine, stream of filler, time and fact."""

    settings: SurviveSettings

    @property
    def engines(self) -> list[str]:
        """In the order they taught."""
        return list(dict.fromkeys(self.rows["engine"]))

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Long table: engine, t, measure, mean, low, high, n, seeds, before (the unedited model's level)."""
        out = []
        rows = self.rows.assign(gain=self.rows["lp"] - self.rows["base_lp"])
        start = rows[rows["t"] == 0].groupby("engine")["gain"].mean()
        for key, group in rows.groupby(["engine", "t"], sort=False):
            engine = str(key[0])
            where = {"engine": engine, "t": int(group["t"].iloc[0]), "seeds": group["seed"].nunique()}
            columns = {name: group[c].astype(float) for name, c in MEASURES.items() if group[c].notna().all()}
            if start[engine] >= LEAST_GAIN:
                columns["gain kept"] = group["gain"] / start[engine]
            for name, values in columns.items():
                # Streams of filler over the same facts are no further facts.
                e = over_clusters(
                    values.to_numpy(), list(group["item"]), within=None if name == "gain kept" else (0.0, 1.0)
                )
                level = group[f"base_{MEASURES[name]}"].astype(float).mean() if name in MEASURES else 0.0
                numbers = {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n, "before": float(level)}
                out.append({**where, "measure": name, **numbers})
            for name, column in OF_STATE.items():
                values = group.groupby("seed")[column].first().astype(float)
                if values.notna().all():
                    # So few streams bear no interval.
                    numbers = {"mean": values.mean(), "low": np.nan, "high": np.nan, "n": len(values)}
                    out.append({**where, "measure": name, **numbers, "before": None})
        return pd.DataFrame(out)

    def value(self, engine: str, measure: str, t: int = 0) -> Estimate:
        """One point; NaN where there is none."""
        c = self.curve
        found = c[(c["engine"] == engine) & (c["measure"] == measure) & (c["t"] == t)]
        if found.empty:
            return Estimate(float("nan"), float("nan"), float("nan"), 0)
        r = found.iloc[0]
        return Estimate(r["mean"], r["low"], r["high"], int(r["n"]))

    @cached_property
    def gains(self) -> dict[str, float]:
        """Mean rise of the new answers' log-probability at t = 0, by engine: where each starts."""
        rows = self.rows[self.rows["t"] == 0]
        return {str(e): float((g["lp"] - g["base_lp"]).mean()) for e, g in rows.groupby("engine", sort=False)}

    @cached_property
    def lifetimes(self) -> dict[str, dict[str, Lifetimes]]:
        """By engine: of recall, and of recognition (preferred to every other answer)."""
        found: dict[str, dict[str, Lifetimes]] = {}
        for engine, group in self.rows.groupby("engine", sort=False):
            found[str(engine)] = {}
            for name, alive in (("recall", group["exact"] == 1), ("recognition", group["recognised"] == 1)):
                wide = group.assign(alive=alive).pivot(index=["seed", "item"], columns="t", values="alive").dropna()
                items = wide.index.get_level_values("item").to_numpy()
                found[str(engine)][name] = Lifetimes.of([float(t) for t in wide.columns], wide.to_numpy(bool), items)
        return found

    @property
    def outlived(self) -> list[str]:
        """Engines whose facts are recognised for longer than they are recalled, by half-lives."""
        return [e for e, found in self.lifetimes.items() if found["recognition"].half_life > found["recall"].half_life]

    @cached_property
    def log_rank(self) -> pd.DataFrame:
        """All pairs of engines: p of the log-rank test on recall's lifetimes, and after Holm's correction."""
        rows = [
            (a, b, self.lifetimes[a]["recall"].differs_from(self.lifetimes[b]["recall"]))
            for a, b in combinations(self.lifetimes, 2)
        ]
        found = pd.DataFrame(rows, columns=["engine", "other", "p"])
        return found.assign(p_holm=holm([p for *_, p in rows]))

    def reference(self, engine: str) -> str | None:
        """The training that an engine is compared with: matched to it in strength, if there is such.

        Studies of older versions have one training that is matched to the engines' mean gain.
        """
        names = (matched_to(engine), MATCHED, TRAIN)
        return next((e for e in names if e in self.lifetimes and e != engine), None)

    def _edits(self) -> list[str]:
        return [e for e in self.engines if e != TRAIN and not e.startswith(MATCHED)]

    def _unmatched(self) -> list[str]:
        """Engines that a training was to match and did not, in words."""
        says = []
        for engine in self._edits():
            other = self.reference(engine)
            if other in (None, TRAIN):
                if self._asked_to_match:
                    says.append(f"'{engine}' (no training reached it)")
            elif abs(self.gains[other] / self.gains[engine] - 1) > MATCH:
                says.append(f"'{engine}' ({self.gains[engine]:.2f} nats against {self.gains[other]:.2f})")
        return says

    @property
    def _asked_to_match(self) -> bool:
        return MATCHED in self.settings.engines

    @cached_property
    def half_lives(self) -> pd.DataFrame:
        """engine, gain at t = 0, n recalled at t = 0, half-lives with 95 %, p of the log-rank test against training."""
        out = []
        last = int(self.rows["t"].max())
        references = {e: self.reference(e) for e in self._edits()}
        pairs = {e: other for e, other in references.items() if other is not None}
        raw = [self.lifetimes[e]["recall"].differs_from(self.lifetimes[other]["recall"]) for e, other in pairs.items()]
        tests = dict(zip(pairs, holm(raw), strict=True))
        for engine, found in self.lifetimes.items():
            numbers: dict[str, Any] = {
                "engine": engine, "gain": self.gains[engine], "facts": int(self.rows["item"].nunique())
            }  # fmt: skip
            for name, lives in found.items():
                low, high = lives.half_life_interval()
                numbers |= {f"{name}_n": lives.n, f"half_life_{name}": lives.half_life}
                numbers |= {f"{name}_low": low, f"{name}_high": high}
            numbers["against"] = pairs.get(engine, "")
            numbers["p"] = tests.get(engine, float("nan"))
            numbers["change_kept"] = self.value(engine, "weight change kept", last).mean
            numbers["routed"] = self.value(engine, "prompts routed", last).mean
            out.append(numbers)
        return pd.DataFrame(out)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        last = int(self.rows["t"].max())
        rate = f"lr {self.settings.later_lr:g}, batch {self.settings.filler_batch}"
        n = self.rows["item"].nunique()
        if LOADED in self.engines:
            start, end = self.value(LOADED, "recall"), self.value(LOADED, "recall", last)
            half = updates_text(self.lifetimes[LOADED]["recall"].half_life, last)
            return (
                f"Half-life of the edit under further training ({rate}): {half}; recalled exactly "
                f"{share_text(start)} at first and {share_text(end)} after {last} updates (n = {n} facts, "
                f"{self.settings.seeds} streams of filler)."
            )
        halves = ", ".join(
            f"{r['engine']} {updates_text(r['half_life_recall'], last)}"
            for r in self.half_lives.to_dict("records")
            if r["recall_n"]
        )
        return f"Half-life of exact recall under further training ({rate}), n = {n} facts: {halves}."

    def to_pandas(self) -> pd.DataFrame:
        """The curve."""
        return self.curve

    def table(self) -> str:
        """Half-lives and what is left, engine by engine."""
        last = int(self.rows["t"].max())
        cells = []
        for r in self.half_lives.to_dict("records"):
            points = [("recall", 0), ("recall", last), ("recognition", last)]
            kept, routed = r["change_kept"], r["routed"]
            cells.append(
                [
                    r["engine"],
                    f"{r['gain']:.2f}",
                    *(share_text(self.value(r["engine"], measure, t)) for measure, t in points),
                    *(
                        half_text(r[f"half_life_{m}"], r[f"{m}_low"], r[f"{m}_high"], last)
                        for m in ("recall", "recognition")
                    ),
                    "-" if np.isnan(r["p"]) else f"{r['p']:.2g}",
                    f"{kept:.1%}" if not np.isnan(kept) else "-" if np.isnan(routed) else f"{routed:.0%} routed",
                ]
            )
        at_end = [f"recall at {last}", f"recognition at {last}"]
        halves = ["half-life of recall", "of recognition"]
        heads = ["engine", "gain (nats)", "recall at 0", *at_end, *halves, "p", "change kept"]
        return text_table(heads, cells)

    def figures(self) -> dict[str, go.Figure]:
        """By name."""
        from editlab.viz.memory_survival import memory_lifetimes, memory_survival

        return {"survival": memory_survival(self), "lifetimes": memory_lifetimes(self)}

    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""
        says: list[str] = []
        base = self.curve[self.curve["measure"] == "recognition"]["before"]
        if len(base):
            says.append(f"Before anything was taught, the new answer was preferred in {base.iloc[0]:.0%} of choices.")
        compared = {e: self.reference(e) for e in self._edits()}
        if any(compared.values()):
            says.append(
                "p: log-rank test of an edit's lifetimes of recall against those of the training matched to it, "
                "or else of 'train'; facts exchanged as wholes, corrected by Holm for the number of engines."
            )
        unmatched = self._unmatched()
        if unmatched:
            says.append(
                f"Not matched within {MATCH:.0%} of its gain, so that the comparison is also one of strengths: "
                f"{', '.join(unmatched)}."
            )
        says.append(
            "Change kept: the share of what was written into the weights that is still there, along its direction."
        )
        said = self.outlived
        if said:
            says.append(f"Recognition outlives recall for {', '.join(said)}.")
        if self.settings.seeds == 1:
            says.append("One stream of filler: nothing is known of others.")
        says.append("Intervals are over facts, each with all its streams of filler.")
        return says

    def shown(self) -> list[pd.DataFrame]:
        """Half-lives, and the tests between engines."""
        return [self.half_lives, self.log_rank]


def half_text(t: float, low: float, high: float, horizon: float) -> str:
    """A half-life with its interval: "5 (3 to >20)"."""
    if np.isnan(t):
        return "never there"
    a, b, c = ("-" if np.isnan(x) else f"{x:g}" if np.isfinite(x) else f">{horizon:g}" for x in (t, low, high))
    return f"{a} ({b} to {c})"


def updates_text(t: float, horizon: float) -> str:
    """A half-life in words."""
    if np.isnan(t):
        return "never recalled"
    return f"{t:g} updates" if np.isfinite(t) else f"more than {horizon:g} updates"
