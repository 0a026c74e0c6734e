"""What single injections of a text do to what a model knows of it (arXiv 2406.11813).

l(q; t) is the mean log-probability of probe q's target under the weights before update t; the passage is injected at
updates t_1 < ... < t_N.

    local acquisition maximum   LAM(q, i) = argmax of l(q; t) over t_i < t <= min(t_i + window, t_{i+1})
    effectivity                 E(q, i) = l(q; LAM(q, i)) - l(q; t_i)
    gain after the last one     G(q, s) = l(q; LAM(q, N) + s) - l(q; t_1)
    retainability               R(s) = sum of G(q, s) / sum of G(q, 0), over the probes with G(q, 0) above its floor

E is the maximum of several probed values, and so is positive for noise as well: of random walks, more than half gain
0.05 nat. Its floor is what the same maxima over the same windows give for probes of passages that are never injected:
their mean for E, and for the gain of a single probe the value that at most one of twenty of them exceeds (with fewer
than 19 of them: the largest), at least 0.05 nat.

With momentum a text goes on being learnt for some updates after it was seen, which is what the window is for: 0.9^50 of
AdamW's first moment is left after the paper's 50 updates. R is a ratio of sums, which needs no rule for outliers
(the paper takes a mean of ratios, and leaves out by quartiles what small denominators blow up). R against log10 s is a
line in the paper: its slope a is what is lost per decade, and R = 0 at s = tau, the interval between encounters beyond
which nothing accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_GAIN = 0.05
DEPTHS = ("memorisation", "semantic", "compositional")


@dataclass(frozen=True)
class Acquired:
    """The numbers of one set of probes.

    Attributes:
        effectivity: (N, probes) in nats. censored: (N, probes) the maximum lies at its window's last probed time.
        times: s. gain: (probes, len(times)). kept: probes whose gain is above its floor, which R is over.
        floor: nats that G(q, 0) has to exceed.
    """

    effectivity: np.ndarray
    censored: np.ndarray
    times: np.ndarray
    gain: np.ndarray
    kept: np.ndarray
    floor: float = LEAST_GAIN

    @property
    def retainability(self) -> np.ndarray:
        """(len(times),) R(s); NaN if no probe gained enough."""
        gain = self.gain[self.kept]
        return gain.sum(0) / gain[:, 0].sum() if len(gain) else np.full(self.times.size, np.nan)

    def decay(self) -> tuple[float, float]:
        """a, the share lost per decade of updates, and tau; by least squares on s >= 1. NaN with under three times."""
        inside = self.times >= 1
        y = self.retainability[inside]
        if inside.sum() < 3 or np.isnan(y).any():
            return float("nan"), float("nan")
        slope, at_one = np.polyfit(np.log10(self.times[inside]), y, 1)
        return float(-slope), float(10 ** (-at_one / slope)) if slope < 0 else float("inf")


def gain_floor(gains: np.ndarray) -> float:
    """What G(q, 0) has to exceed, from that of probes that are never injected: one of twenty of them may, at most."""
    n = gains.size
    if not n:
        return LEAST_GAIN
    rank = min(n, int(np.ceil((n + 1) * 0.95)))
    return max(LEAST_GAIN, float(np.sort(gains)[rank - 1]))


def acquired(
    t: Sequence[int],
    lp: np.ndarray,
    injected: Sequence[int],
    window: int,
    after: Sequence[int],
    floor: float = LEAST_GAIN,
) -> Acquired:
    """Effectivity and retainability from probed log-probabilities.

    Args:
        t: probed times, ascending; every injection is among them. lp: (len(t), probes). injected: t_1 ... t_N.
        after: s at which gains are wanted; between probed times they are interpolated, beyond the last one left out.
        floor: see `gain_floor`.
    """
    times, values = np.asarray(t, float), np.asarray(lp, float)
    at = {int(x): i for i, x in enumerate(times)}
    probes = np.arange(values.shape[1])
    effectivity, censored = [], []
    best = np.zeros(values.shape[1], int)
    for i, start in enumerate(injected):
        end = min(start + window, injected[i + 1] if i + 1 < len(injected) else start + window)
        inside = np.flatnonzero((times > start) & (times <= end))
        best = inside[values[inside].argmax(0)]
        effectivity.append(values[best, probes] - values[at[start]])
        censored.append(best == inside[-1])
    longest = times[-1] - times[best].max()
    grid = np.array([s for s in after if s <= longest], float)
    before = values[at[injected[0]]]
    gain = np.array([np.interp(times[b] + grid, times, values[:, q]) - before[q] for q, b in enumerate(best)])
    kept = gain[:, 0] > floor
    return Acquired(np.array(effectivity), np.array(censored), grid, gain, kept, floor)
