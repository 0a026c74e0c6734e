"""How memory decays with updates t: four families of curves, none of which is taken for granted.

    log-linear      y = c - a log10 t
    power           y = A (1 + t)^-b
    exponential     y = A exp(-k t)
    with a floor    y = (A - p) exp(-k t) + p

y is scaled so that 1 is what there was at t = 0 and 0 the level without memory. Weighted least squares (SciPy), three
starts each, on the times t >= 1, where all four are defined, so that they are compared on the same data. Families are
ordered by AICc = n ln(RSS / n) + 2 m + 2 m (m + 1) / (n - m - 1), RSS weighted, m counting the variance. That alone
names none: residuals of one set of items along t are no independent draws, so AICc is surer than it may be. A family is
named if it comes first in 95 % of resamples of the items, and from ten times on: with seven, the correction for small n
alone decides against the family of three parameters. Parameters get their interval from the same refits. The last two
times are also predicted from the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import curve_fit

Curve = Callable[..., np.ndarray]
LEAST_TIMES = 10  # t >= 1, with fewer of which no family is named
OFTEN = 0.95  # of resamples in which a family has to come first to be named
SELECTIONS = 200  # resamples in which families are compared
FLOOR_SE = 0.01  # no mean of a few items is surer than this
DRAWS = 500  # of the items, for how sure each mean is


@dataclass(frozen=True)
class Family:
    """One form of decay.

    Attributes:
        starts: of its parameters. bounds: lowest and highest of each.
    """

    name: str
    curve: Curve
    parameters: tuple[str, ...]
    starts: tuple[tuple[float, ...], ...]
    bounds: tuple[tuple[float, ...], tuple[float, ...]]


_INF = float("inf")
FAMILIES = (
    Family("log-linear", lambda t, c, a: c - a * np.log10(t), ("c", "a"), ((1, 0.1), (1, 0.5), (0.5, 0.0)),
           ((-0.5, -_INF), (2.0, _INF))),
    Family("power", lambda t, A, b: A * (1 + t) ** -b, ("A", "b"), ((1, 0.1), (1, 0.7), (0.5, 0.01)),
           ((0, 0), (1.5, _INF))),
    Family("exponential", lambda t, A, k: A * np.exp(-k * t), ("A", "k"), ((1, 0.01), (1, 0.1), (1, 1.0)),
           ((0, 0), (1.5, _INF))),
    Family("exponential with floor", lambda t, A, k, p: (A - p) * np.exp(-k * t) + p, ("A", "k", "p"),
           ((1, 0.03, 0.1), (1, 0.2, 0.5), (1, 1.0, 0.3)), ((0, 0, 0), (1.5, _INF, 1.0))),
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """One family on one curve.

    Attributes:
        parameters: by name. intervals: 95 %, by resampling items; empty without them.
        aicc, r2, rmse: of the fit. times: it was fitted to. selected: share of item resamples in which it has the best
            AICc; NaN without resamples. held_out: mean absolute error on the last two times when the
            rest is fitted; NaN with too few.
    """

    family: str
    parameters: dict[str, float]
    aicc: float
    r2: float
    rmse: float
    held_out: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    times: int = 0
    selected: float = float("nan")

    def at(self, t: Sequence[float] | np.ndarray) -> np.ndarray:
        """The curve at times t >= 1; NaN before."""
        family = next(f for f in FAMILIES if f.name == self.family)
        times = np.asarray(t, float)
        return np.where(times >= 1, family.curve(np.maximum(times, 1), *self.parameters.values()), np.nan)


def fit_forgetting(t: Sequence[float], items: np.ndarray, *, resamples: int = 200, seed: int = 0) -> list[Fit]:
    """All families that the number of times allows, best AICc first; none if nothing changes.

    Times before 1 are left out.

    Args:
        t: times. items: (n_items, n_times) scaled values, whose mean over items is fitted.
        resamples: refits for the parameters' intervals and for how often each family is selected; the weights do not
            depend on it.
    """
    times = np.asarray(t, float)
    values = np.asarray(items, float)[:, times >= 1]
    times = times[times >= 1]
    mean = values.mean(0)
    if np.ptp(mean) == 0:
        return []
    rng = np.random.default_rng(seed)
    # Not a row of means per draw from the items themselves, which would be (draws, items, times) at once.
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), max(DRAWS, resamples)) / len(values)
    means = weights @ values  # (draws, n_times)
    se = np.maximum(means.std(0), FLOOR_SE)
    fits = []
    scores = []  # of each fitted family, its AICc in every resample
    for family in FAMILIES:
        m = len(family.parameters) + 1
        found = _solve(family, times, mean, se) if times.size >= m + 3 else None
        if found is None:
            continue
        residual = mean - family.curve(times, *found)
        again = [_solve(family, times, row, se, start=found) for row in means[:resamples]]
        residuals = ((row, x) for row, x in zip(means[:resamples], again, strict=True))
        scores.append(
            [
                float("inf") if x is None else _aicc((row - family.curve(times, *x)) / se * se.mean(), m)
                for row, x in residuals
            ]
        )
        solved = np.array([row for row in again if row is not None])
        bounds = np.quantile(solved, [0.025, 0.975], axis=0).T if len(solved) > 1 else []
        total = float(((mean - mean.mean()) ** 2).sum())
        fits.append(
            Fit(
                family=family.name,
                parameters=dict(zip(family.parameters, map(float, found), strict=True)),
                aicc=_aicc(residual / se * se.mean(), m),
                r2=1 - float((residual**2).sum()) / total if total > 0 else float("nan"),
                rmse=float(np.sqrt((residual**2).mean())),
                held_out=_held_out(family, times, mean, se),
                intervals={n: (float(a), float(b)) for n, (a, b) in zip(family.parameters, bounds, strict=False)},
                times=times.size,
            )
        )
    if resamples and fits:
        first = np.bincount(np.argmin(scores, axis=0), minlength=len(fits)) / resamples
        fits = [replace(fit, selected=float(share)) for fit, share in zip(fits, first, strict=True)]
    return sorted(fits, key=lambda fit: fit.aicc)


def named(fits: Sequence[Fit]) -> Fit | None:
    """The family that the data select; None if they do not."""
    enough = [f for f in fits if f.times >= LEAST_TIMES and f.selected >= OFTEN]
    return enough[0] if enough and enough[0] is fits[0] else None


def verdict(fits: Sequence[Fit]) -> str:
    """One sentence about which family the data prefer."""
    if not fits:
        return "No curve was fitted: too few times, or nothing changed."
    first = fits[0]
    best = f"The lowest AICc is that of {first.family} (R² {first.r2:.3f})"
    if first.times < LEAST_TIMES:
        return f"{best}; {first.times} times do not tell families apart ({LEAST_TIMES} or more may)."
    if np.isnan(first.selected):
        return f"{best}; how often other items would say so was not looked at."
    often = ", ".join(f"{f.family} in {f.selected:.0%}" for f in fits if f.selected >= 0.005)
    if named(fits) is None:
        return f"{best}, but families are not told apart: first in resamples of the items are {often}."
    return f"Best: {first.family} (R² {first.r2:.3f}), first in {first.selected:.0%} of resamples of the items."


def _solve(
    family: Family, t: np.ndarray, y: np.ndarray, se: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray | None:
    best, least = None, float("inf")
    for p0 in family.starts if start is None else (start,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the covariance, which is not used
                found, _ = curve_fit(family.curve, t, y, p0=p0, sigma=se, bounds=family.bounds, maxfev=20_000)
        except RuntimeError:  # no convergence from this start
            continue
        loss = float((((y - family.curve(t, *found)) / se) ** 2).sum())
        if loss < least:
            best, least = found, loss
    return best


def _aicc(residual: np.ndarray, m: int) -> float:
    n = residual.size
    rss = max(float((residual**2).sum()), 1e-24)
    return n * float(np.log(rss / n)) + 2 * m + 2 * m * (m + 1) / (n - m - 1)


def _held_out(family: Family, t: np.ndarray, y: np.ndarray, se: np.ndarray) -> float:
    if t.size - 2 < len(family.parameters) + 1:
        return float("nan")
    found = _solve(family, t[:-2], y[:-2], se[:-2])
    return float("nan") if found is None else float(np.abs(y[-2:] - family.curve(t[-2:], *found)).mean())
