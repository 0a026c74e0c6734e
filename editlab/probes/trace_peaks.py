"""Which effects of a trace are more than noise, and which layers they suggest for an edit.

P* differs from one noise sample to the next. With S samples, R the probabilities with one state restored and P* those
without, an effect counts where it exceeds

    t(1 - LEVEL / cells; S - 1) * sqrt((var R + var P*) / S)

the most that the difference of two means over S corruptions each would reach in any of the cells that are searched
(Bonferroni) if restoring did nothing. Both share their noise, so this is strict on purpose: a state that shifts every
sample by a hair is significant when samples are paired, and yet smaller than what the choice of the noise changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05  # that the largest of all cells exceeds the noise though no state does anything
SHARE = 0.8  # of the peak's effect that layers beside it have to reach


def noise_bound(standard_error: np.ndarray, df: float, cells: int) -> np.ndarray:
    """What an effect has to exceed, of the shape of its standard errors; NaN without degrees of freedom."""
    if df < 1:
        return np.full(np.shape(standard_error), np.nan)
    return np.asarray(stats.t.ppf(1 - LEVEL / max(cells, 1), df) * standard_error)


@dataclass(frozen=True)
class Peak:
    """The largest effect among a subject's states.

    Attributes:
        layer, column: where. place: the column in words. effect, noise: in probability; `noise` is what the effect has
            to exceed, NaN if it is not known.
    """

    layer: int
    column: int
    place: str
    effect: float
    noise: float

    @property
    def is_above_noise(self) -> bool:
        """False also if the noise is not known."""
        return bool(self.effect > self.noise)


def highest(effects: np.ndarray, noise: np.ndarray, columns: Sequence[int], places: Sequence[str]) -> Peak:
    """The largest effect in these columns that exceeds its noise; if none does, the largest.

    Args:
        effects, noise: (L, C), NaN where there is none. columns: those that are searched. places: names of all C.
    """
    searched = list(columns)
    values = np.where(np.isnan(effects), -np.inf, effects)[:, searched]
    above = values > noise[:, searched]
    ranked = np.where(above, values, -np.inf) if above.any() else values
    layer, i = (int(x) for x in np.unravel_index(int(ranked.argmax()), ranked.shape))
    column = searched[i]
    return Peak(layer, column, places[column], float(effects[layer, column]), float(noise[layer, column]))


@dataclass(frozen=True)
class Suggestion:
    """Layers that are worth trying for an edit, and what says so.

    Attributes:
        layers: around the peak, those that reach `SHARE` of its effect; empty if the peak is not above the noise.
        peak: of all states of the subject. last: of those of its last token, where edits write.
        state: what was restored, in words. samples: of the noise. of: whose effects, in words.
    """

    layers: tuple[int, ...]
    peak: Peak
    last: Peak
    state: str
    samples: int
    of: str

    @property
    def layer(self) -> int | None:
        """The layer of the peak; None without a suggestion."""
        return self.peak.layer if self.layers else None

    @property
    def text(self) -> str:
        """The suggestion with its evidence, in sentences."""
        return f"{self._layers} {self._rests_on} {CAVEAT}"

    @property
    def _layers(self) -> str:
        if not self.layers:
            return "No layer is suggested."
        named = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"layers {self.layers[0]} to {self.layers[-1]}"
        return f"Worth trying for an edit: {named}, which restore at least {SHARE:.0%} of the subject's peak."

    @property
    def _rests_on(self) -> str:
        p = self.peak
        shown = f"{p.effect:+.1%} by the {self.state} at layer {p.layer}, {p.place}"
        if np.isnan(p.noise):
            return (
                f"{self.samples} noise sample{'s' * (self.samples != 1)} cannot tell an effect from noise (the largest "
                f"at the subject is {shown}); use ten or more."
            )
        of = f"{self.of}, {self.samples} noise sample{'s' * (self.samples != 1)}"
        if not self.layers:
            return (
                f"No state of the subject restores more than noise: the largest effect is {shown}, and noise reaches "
                f"{p.noise:.1%} there ({of})."
            )
        said = f"It rests on {shown}; noise reaches {p.noise:.1%} there ({of})."
        if p.column == self.last.column:
            return said
        at_last = (
            f"whose own peak is {self.last.effect:+.1%} at layer {self.last.layer}"
            if self.last.is_above_noise
            else "which restores no more than noise"
        )
        return f"{said} That is not the subject's last token, where edits write and {at_last}: weaker evidence."


CAVEAT = (
    "A trace explains and does not choose: the best layer to edit is often another (arXiv 2301.04213); 'editlab tune' "
    "finds it by editing."
)


def suggest(
    effects: np.ndarray,
    noise: np.ndarray,
    columns: Sequence[int],
    places: Sequence[str],
    *,
    state: str,
    samples: int,
    of: str,
) -> Suggestion:
    """The layers around the peak of a subject's states.

    Args:
        effects, noise: (L, C). columns: of the subject, its last token's at the end. places: names of all C.
    """
    peak = highest(effects, noise, columns, places)
    last = highest(effects, noise, columns[-1:], places)
    layers: tuple[int, ...] = ()
    if peak.is_above_noise:
        enough = effects[:, peak.column] >= SHARE * peak.effect
        low = high = peak.layer
        while low > 0 and enough[low - 1]:
            low -= 1
        while high < len(enough) - 1 and enough[high + 1]:
            high += 1
        layers = tuple(range(low, high + 1))
    return Suggestion(layers, peak, last, state, samples, of)
