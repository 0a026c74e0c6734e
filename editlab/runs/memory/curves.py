"""What a study of memory found: curves with their intervals, fits of forgetting, and the rows that they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from editlab.display import text_table
from editlab.evaluation.statistics import (
    GROUP_JACKKNIFE,
    LEVEL,
    Estimate,
    estimate,
    estimate_nested,
    jackknife_interval,
)
from editlab.probes.memory import recognition
from editlab.probes.memory.forgetting import LEAST_TIMES, SELECTIONS, Fit, fit_forgetting, verdict
from editlab.probes.memory.survival import Lifetimes
from editlab.runs.memory.result import MemoryResult
from editlab.runs.memory.settings import StudySettings

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAWS = 1000
PAIR = ["kind", "seed", "direction", "item"]
# Of the studied texts alone: column of the rows.
OF_STUDIED = {
    "recall": "exact",
    "recall of tokens": "hits",
    "recall up to the first mistake": "prefix",
    "loss of studied": "loss",
    "ROUGE-2 of the continuation": "rouge2",
    "ROUGE-L of the continuation": "rougeL",
}
CHANCE = {"recognition": 0.5, "AUC": 0.5, "recognition by gain": 0.5, "d'": 0.0}
MEASURED = ("recognition", "AUC", "d'")  # whose chance level holds only if both texts of a pair are studied in turn


@dataclass(frozen=True)
class StudyResult(MemoryResult):
    """The rows of a study: one per item, role (studied or foil) and state.

    Attributes:
        rows: see `study`; `exposure` counts passes, `t` updates of further training (NaN during the study).
    """

    settings: StudySettings

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per pair and state, with columns (value, role)."""
        keys = [*PAIR, "exposure", "later"]
        rows = self.rows.assign(later=self.rows["t"].fillna(0.0))
        values = ["loss", "base_loss", *(c for c in ("exact", "hits", "prefix", "rouge2", "rougeL") if c in rows)]
        wide = rows.pivot(index=keys, columns="role", values=values)
        return wide.reset_index()

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Long table: kind, exposure, t, measure, mean, low, high, n, seeds, chance."""
        out = []
        for state, group in self.pairs.groupby(["kind", "exposure", "later"], sort=True):
            where = dict(zip(("kind", "exposure", "t"), state, strict=True)) | {"seeds": group["seed"].nunique()}
            for name, found in _estimates(group).items():
                numbers = {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
                out.append({**where, "measure": name, **numbers, "interval": found.method, "chance": CHANCE.get(name)})
        curve = pd.DataFrame(out).astype({"exposure": int, "t": int})
        return curve if self.settings.counterbalance else _with_measured_levels(curve)

    def level(self, measure: str, kind: str | None = None) -> float:
        """What a measure is without memory: its chance level, or without counterbalancing what it was before any study.

        NaN for a measure that has none.
        """
        kind = self.kinds[0] if kind is None else kind
        found = self.curve[(self.curve["measure"] == measure) & (self.curve["kind"] == kind)]["chance"]
        return float(found.iloc[0]) if len(found) and found.iloc[0] is not None else float("nan")

    def value(self, measure: str, *, exposure: int | None = None, t: int = 0, kind: str | None = None) -> Estimate:
        """One point of the curve, NaN where there is none; by default after the last exposure, of the first kind."""
        c = self.curve
        exposure = self.settings.exposures if exposure is None else exposure
        kind = self.kinds[0] if kind is None else kind
        row = c[(c["measure"] == measure) & (c["exposure"] == exposure) & (c["t"] == t) & (c["kind"] == kind)]
        if row.empty:  # the course was aborted before
            return estimate([])
        r = row.iloc[0]
        return Estimate(r["mean"], r["low"], r["high"], int(r["n"]), r["interval"])

    def _matrix(self, kind: str, of: Callable[[pd.DataFrame], Any]) -> tuple[list[int], np.ndarray]:
        """Times, and (items, times) of something at the last exposure."""
        p = self.pairs[(self.pairs["kind"] == kind) & (self.pairs["exposure"] == self.settings.exposures)]
        flat = pd.DataFrame({c: p[c].to_numpy() for c in ("seed", "direction", "item", "later")} | {"y": of(p)})
        wide = flat.pivot(index=["seed", "direction", "item"], columns="later", values="y").dropna()
        return [int(t) for t in wide.columns], wide.to_numpy(float)

    @cached_property
    def fits(self) -> dict[str, dict[str, list[Fit]]]:
        """By kind of pair: `forgetting`, resampled where there are times enough for a family to be named."""
        enough = sum(t >= 1 for t in self.settings.times) >= LEAST_TIMES
        return {kind: self.forgetting(kind, resamples=SELECTIONS if enough else 0) for kind in self.kinds}

    def forgetting(self, kind: str | None = None, resamples: int = 200) -> dict[str, list[Fit]]:
        """Fits to recognition, recall and gained log-probability, each scaled to 1 at t = 0 and 0 at chance.

        Args:
            resamples: of the items, for the parameters' intervals and for how often each family is selected.
        """
        kind = self.kinds[0] if kind is None else kind
        found: dict[str, list[Fit]] = {}
        zero = self.value("recall", exposure=0, kind=kind).mean
        t, recalled = self._matrix(kind, lambda p: p["exact", "studied"])
        if not recalled.size:
            return {}
        whole = recalled[:, 0].mean() - zero
        scaled = {}
        level = self.level("recognition", kind)
        if level < 1:
            told = self._matrix(kind, lambda p: recognition.prefers(*_losses(p)))[1]
            scaled["recognition"] = (told - level) / (1 - level)
        if whole > 0:
            scaled["recall"] = (recalled - zero) / whole
        gain = self._matrix(kind, lambda p: p["base_loss", "studied"] - p["loss", "studied"])[1]
        if gain[:, 0].mean() > 0:
            scaled["gain of log-probability"] = gain / gain[:, 0].mean()
        for name, values in scaled.items():
            found[name] = fit_forgetting(t, values, resamples=resamples, seed=self.settings.seed)
        return found

    def lifetimes(self, kind: str | None = None) -> dict[str, Lifetimes]:
        """Of recognition and of exact recall, item by item."""
        kind = self.kinds[0] if kind is None else kind
        t, recalled = self._matrix(kind, lambda p: p["exact", "studied"])
        _, known = self._matrix(kind, lambda p: recognition.prefers(*_losses(p)) == 1)
        return {"recognition": Lifetimes.of(t, known), "recall": Lifetimes.of(t, recalled)}

    def item_matrix(self, column: str) -> tuple[list[int], np.ndarray]:
        """Times, and (items of all kinds, times) of a column of the studied texts after the last exposure."""
        found = [self._matrix(kind, lambda p: p[column, "studied"]) for kind in self.kinds]
        return found[0][0], np.concatenate([values for _, values in found])

    @property
    def kinds(self) -> list[str]:
        """In the order they were asked for."""
        return list(dict.fromkeys(self.rows["kind"]))

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        first, last = self.value("recognition", exposure=1), self.value("recall")
        says = (
            f"{share_text(first)} recognised after one exposure ({self._level_text}), {share_text(last)} recalled "
            f"exactly after {self.settings.exposures}"
        )
        end = max(self.curve["t"])
        if end:
            kept, said = self.value("recognition", t=end), self.value("recall", t=end)
            says += f"; after {end} further updates {share_text(kept)} recognised and {share_text(said)} recalled"
        n = self.value("recognition")
        of = f"of kind '{self.kinds[0]}', " if len(self.kinds) > 1 else ""
        return f"{says} (n = {n.n} studied texts, {of}{self.rows['seed'].nunique()} seeds)."

    @property
    def _level_text(self) -> str:
        if self.settings.counterbalance:
            return "chance 50 %"
        return f"before any study {self.level('recognition'):.1%}, not counterbalanced"

    def to_pandas(self) -> pd.DataFrame:
        """The curve."""
        return self.curve

    def table(self) -> str:
        """Recognition and recall, state by state."""
        shown = self.curve[self.curve["measure"].isin(["recognition", "AUC", "recall", "ROUGE-2 of the continuation"])]
        names = list(dict.fromkeys(shown["measure"]))
        cells = []
        for (kind, exposure, t), rows in shown.groupby(["kind", "exposure", "t"], sort=True):
            by = rows.set_index("measure")
            found = {n: Estimate(*by.loc[n, ["mean", "low", "high", "n"]]) for n in names if n in by.index}
            told = [share_text(found[n]) if n in found else "-" for n in names]
            cells.append([kind, exposure, t, *told])
        return text_table(["kind", "exposures", "later updates", *names], cells)

    def figures(self) -> dict[str, go.Figure]:
        """By name."""
        from editlab.viz.memory import memory_exposures, memory_items, memory_losses, memory_retention

        later = {"retention": memory_retention, "items": memory_items} if max(self.curve["t"]) else {}
        drawn = {**later, "exposures": memory_exposures, "losses": memory_losses}
        return {name: draw(self) for name, draw in drawn.items()}

    def reservations(self) -> list[str]:
        """What a reader must know of the numbers, beside courses that ended early."""
        says: list[str] = []
        if self.rows["seed"].nunique() == 1:
            says.append("One seed: intervals are over items only, with no run-to-run variance.")
        if not self.settings.counterbalance:
            says.append(
                "Not counterbalanced: how likely the texts are by themselves shows in recognition, whose level is what "
                "was measured before the study."
            )
        drift = self.value("loss of foils").mean - self.value("loss of foils", exposure=0).mean
        says.append(f"The foils' loss moved by {drift:+.2f} nats over the study (drift).")
        if max(self.curve["t"]):
            halves = {n: l.half_life for n, l in self.lifetimes().items()}
            says += [f"Half-life of {n}: {_updates(h, max(self.curve['t']))}." for n, h in halves.items()]
            says += [f"Forgetting of {n}. {verdict(f)}" for n, f in self.fits[self.kinds[0]].items()]
        return says

    def shown(self) -> list[pd.DataFrame]:
        """Recognition and recall."""
        return [self.curve[self.curve["measure"].isin(["recognition", "recall"])]]


def _with_measured_levels(curve: pd.DataFrame) -> pd.DataFrame:
    """The curve with what was measured before any study in place of chance."""
    before = curve[(curve["exposure"] == 0) & (curve["t"] == 0)].set_index(["kind", "measure"])["mean"]
    measured = [
        before.get((kind, name)) if name in MEASURED else chance
        for kind, name, chance in zip(curve["kind"], curve["measure"], curve["chance"], strict=True)
    ]
    return curve.assign(chance=pd.Series(measured, curve.index, dtype=object))


def _losses(pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return pairs["loss", "studied"].to_numpy(float), pairs["loss", "foil"].to_numpy(float)


def _estimates(group: pd.DataFrame) -> dict[str, Estimate]:
    """All measures of the pairs of one state."""
    seeds = group["seed"].to_numpy()

    def nested(values: np.ndarray) -> Estimate:
        return estimate_nested([values[seeds == s] for s in np.unique(seeds)])

    def share(values: np.ndarray) -> Estimate:
        return estimate_nested([values[seeds == s] for s in np.unique(seeds)], within=(0.0, 1.0))

    studied, foils = _losses(group)
    before = [group["base_loss", role].to_numpy(float) for role in ("studied", "foil")]
    told = share(recognition.prefers(studied, foils))
    found = {
        "recognition": told,
        "AUC": _of_runs(group, recognition.auc, (0.0, 1.0)),
        "d'": _sensitivity(told),
        "margin": _of_runs(group, recognition.margin),
        "recognition by gain": share(recognition.gained(studied, foils, *before)),
        "loss of foils": nested(foils),
    }
    for name, column in OF_STUDIED.items():
        if (column, "studied") in group:
            values = group[column, "studied"].to_numpy(float)
            if not np.isnan(values).any():
                found[name] = nested(values) if column == "loss" else share(values)
    return found


def _of_runs(
    group: pd.DataFrame, score: Callable[..., np.ndarray], within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """The mean of a score of losses over runs.

    The interval is over seeds, whose runs share texts and weights, and never narrower than what resampling the texts of
    each run gives; that alone with one seed.
    """
    rng = np.random.default_rng(0)
    by_seed: list[tuple[float, np.ndarray]] = []
    for _, of_seed in group.groupby("seed"):
        points, draws = [], []
        for _, run in of_seed.groupby("direction"):
            studied, foils = _losses(run)
            n = len(studied)
            w, v = (rng.multinomial(n, np.full(n, 1 / n), DRAWS) / n for _ in range(2))
            points.append(float(score(studied, foils)))
            draws.append(score(studied, foils, w, v))
        by_seed.append((float(np.mean(points)), np.mean(draws, 0)))
    each = np.array([point for point, _ in by_seed])
    means = np.mean([draws for _, draws in by_seed], axis=0)
    known = means[~np.isnan(means)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known.size else (np.nan, np.nan)
    if len(each) < 2:
        return Estimate(float(each.mean()), float(low), float(high), len(group), "bootstrap")
    over_seeds = jackknife_interval(float(each.mean()), (each.sum() - each) / (len(each) - 1))
    low, high = np.clip((np.fmin(low, over_seeds[0]), np.fmax(high, over_seeds[1])), *within)
    return Estimate(float(each.mean()), float(low), float(high), len(group), GROUP_JACKKNIFE)


def _sensitivity(told: Estimate) -> Estimate:
    """d' of a share recognised and of its interval's ends."""
    mean, low, high = (recognition.d_prime(share, told.n) for share in (told.mean, told.low, told.high))
    return Estimate(mean, low, high, told.n, told.method)


def share_text(e: Estimate) -> str:
    """A share with its interval."""
    if not e.n:
        return "not measured"
    return f"{e.mean:.1%} ({e.low:.1%} to {e.high:.1%})"


def _updates(t: float, horizon: float) -> str:
    return f"{t:g} updates" if np.isfinite(t) else f"more than {horizon:g} updates"
