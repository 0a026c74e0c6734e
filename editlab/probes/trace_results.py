"""What causal tracing gives: effects by layer and token, their average over facts, and where an edit may be tried."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from editlab.probes.trace_peaks import Peak, Suggestion, noise_bound, suggest
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.probes.trace import Config

ROLES = (
    "first subject token", "middle subject tokens", "last subject token", "next token", "further tokens", "last token",
)  # fmt: skip
OF_SUBJECT = (0, 1, 2)  # of ROLES


@dataclass(frozen=True)
class Trace(Saved):
    """The trace of one prompt.

    Attributes:
        tokens: of the prompt, the sink in front. subject: first and one past the last of its tokens.
        answer: the traced answer's first token, as text.
        p_clean: P. p_corrupt: (S,) probability in each corrupted row, without restoration.
        restored: (L, T, S) float32, probability with the state at (layer, token) restored.
        noise_std: standard deviation of the noise, in the embedding's units.
    """

    prompt: str
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    p_clean: float
    p_corrupt: np.ndarray
    restored: np.ndarray
    noise_std: float
    config: Config
    model: str

    @property
    def gap(self) -> float:
        """The total effect P - P*."""
        return self.p_clean - float(self.p_corrupt.mean())

    @cached_property
    def effect(self) -> np.ndarray:
        """(L, T) indirect effects: mean probability restored, less P*."""
        return self.restored.mean(-1) - self.p_corrupt.mean()

    @cached_property
    def noise(self) -> np.ndarray:
        """(L, T) what an effect has to exceed to be more than noise (`trace_peaks`); NaN with one sample."""
        return noise_bound(_standard_error(self.restored, self.p_corrupt), self._samples - 1, self._searched)

    @property
    def _samples(self) -> int:
        return len(self.p_corrupt)

    @property
    def _searched(self) -> int:
        """Cells among which the subject's peak is the largest."""
        return len(self.restored) * (self.subject[1] - self.subject[0])

    @property
    def peak(self) -> tuple[int, int]:
        """Layer and token of the largest effect; at the last token in general, which the answer is read from."""
        layer, token = np.unravel_index(int(self.effect.argmax()), self.effect.shape)
        return int(layer), int(token)

    @property
    def subject_peak(self) -> Peak:
        """The largest effect at any of the subject's tokens; `is_above_noise` says whether it is one."""
        return self.suggestion.peak

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        p = self.subject_peak
        said = f"the {self.config.kind} at layer {p.layer}, {p.place} restores most ({p.effect:+.1%})"
        if np.isnan(p.noise):
            said = f"one noise sample cannot tell which restore more than noise (largest {p.effect:+.1%} at layer "
            said += f"{p.layer}, {p.place})"
        elif not p.is_above_noise:
            said = f"none restores more than noise (largest {p.effect:+.1%} at layer {p.layer}, {p.place}; noise "
            said += f"reaches {p.noise:.1%})"
        return (
            f"'{self.answer.strip()}': P {self.p_clean:.1%} clean, {self.p_corrupt.mean():.1%} corrupted; of the "
            f"subject's tokens, {said}."
        )

    def by_role(self) -> np.ndarray:
        """(L, 6) effects averaged over the tokens of each role in `ROLES`; NaN where a prompt has none."""
        out = np.full((len(self.effect), len(ROLES)), np.nan)
        for i, tokens in enumerate(roles(len(self.tokens), self.subject)):
            if tokens:
                out[:, i] = self.effect[:, tokens].mean(1)
        return out

    def errors_by_role(self) -> np.ndarray:
        """(L, 6) standard errors of `by_role` over noise samples; NaN with one sample."""
        out = np.full((len(self.effect), len(ROLES)), np.nan)
        for i, tokens in enumerate(roles(len(self.tokens), self.subject)):
            if tokens:
                out[:, i] = _standard_error(self.restored[:, tokens].mean(1), self.p_corrupt)
        return out

    @cached_property
    def suggestion(self) -> Suggestion:
        """Layers worth trying for an edit, and the evidence."""
        places = [f"token '{text.strip()}'" for text in self.tokens]
        of = f"the largest of {self._searched} states"
        state = state_in_words(self.config, len(self.restored))
        return suggest(self.effect, self.noise, range(*self.subject), places, state=state, samples=self._samples, of=of)

    def suggest_layers(self) -> tuple[int, ...]:
        """The layers of `suggestion`; none if no effect at the subject is above the noise."""
        return self.suggestion.layers

    def to_pandas(self) -> pd.DataFrame:
        """One row per layer and token."""
        import pandas as pd

        n_layers, n_tokens = self.effect.shape
        layer, token = np.divmod(np.arange(n_layers * n_tokens), n_tokens)
        return pd.DataFrame(
            {
                "layer": layer,
                "token": token,
                "text": [self.tokens[t] for t in token],
                "in_subject": [self.subject[0] <= t < self.subject[1] for t in token],
                "p_restored": self.restored.mean(-1).ravel(),
                "sd": self.restored.std(-1).ravel(),
                "effect": self.effect.ravel(),
                "noise": self.noise.ravel(),
            }
        )

    def plot(self) -> go.Figure:
        """A heatmap of tokens by layers."""
        from editlab.viz.locate import trace_heatmap

        return trace_heatmap(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().nlargest(8, 'effect').to_html(index=False)}"


@dataclass(frozen=True)
class TraceAverage(Saved):
    """Effects averaged over facts.

    Attributes:
        effects: (n, L, 6) each fact's effects by role; NaN where its prompt has no such token.
        p_clean, p_corrupt: (n,).
        left_out: facts that were not traced, and why.
        errors: (n, L, 6) standard errors of the effects over noise samples; None in results of older versions, whose
            noise is taken from how the facts differ.
    """

    effects: np.ndarray
    p_clean: np.ndarray
    p_corrupt: np.ndarray
    left_out: tuple[tuple[str, str], ...]
    config: Config
    model: str
    errors: np.ndarray | None = None

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        p = self.suggestion.peak
        row = self.to_pandas().query("layer == @p.layer and role == @p.place").iloc[0]
        interval = f" ({row['low']:.1%} to {row['high']:.1%})" if np.isfinite(row["low"]) else ""
        said = f"restores most at the {p.place}, layer {p.layer}: {p.effect:.1%}{interval}"
        if not p.is_above_noise:
            said = f"restores no more than noise there (largest {p.effect:+.1%} at the {p.place}, layer {p.layer})"
        return (
            f"{len(self.effects)} facts: total effect {float((self.p_clean - self.p_corrupt).mean()):.1%}; of the "
            f"subject's tokens, the {self.config.kind} {said}; {len(self.left_out)} facts left out."
        )

    @cached_property
    def mean(self) -> np.ndarray:
        """(L, 6) effects averaged over the facts that have such a token; NaN where none has."""
        return _mean_of_present(self.effects)

    @cached_property
    def noise(self) -> np.ndarray:
        """(L, 6) what a mean effect has to exceed to be more than noise."""
        n = (~np.isnan(self.effects)).sum(0)
        cells = len(OF_SUBJECT) * self.effects.shape[1]
        if self.errors is None:
            spread = np.sqrt(_mean_of_present((self.effects - self.mean) ** 2) / np.maximum(n - 1, 1))
            return noise_bound(np.where(n > 1, spread, np.nan), len(self.effects) - 1, cells)
        squares = _mean_of_present(self.errors**2) / np.maximum(n, 1)  # each fact has noise of its own
        return noise_bound(np.sqrt(squares), len(self.effects) * (self.config.samples - 1), cells)

    @cached_property
    def suggestion(self) -> Suggestion:
        """Layers worth trying for an edit, and the evidence."""
        of = f"{len(self.effects)} facts, the largest of {len(OF_SUBJECT) * self.effects.shape[1]} means"
        state = state_in_words(self.config, self.effects.shape[1])
        return suggest(self.mean, self.noise, OF_SUBJECT, ROLES, state=state, samples=self.config.samples, of=of)

    def suggest_layers(self) -> tuple[int, ...]:
        """The layers of `suggestion`; none if no effect at the subject is above the noise."""
        return self.suggestion.layers

    def to_pandas(self) -> pd.DataFrame:
        """One row per layer and role, with 95 % bootstrap intervals over facts."""
        import pandas as pd

        from editlab.evaluation.statistics import estimate, estimate_joint

        rows = []
        for layer in range(self.effects.shape[1]):
            for i, role in enumerate(ROLES):
                values = self.effects[:, layer, i]
                values = values[~np.isnan(values)]
                # Resampled also where all are exactly 0, as below the last layer; a share of 0 has another interval.
                e = estimate_joint([values], np.asarray, seed=self.config.seed) if len(values) else estimate([])
                numbers = {"effect": e.mean, "low": e.low, "high": e.high, "n": e.n, "noise": self.noise[layer, i]}
                rows.append({"layer": layer, "role": role, **numbers})
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Lines over layers, one a role, with their intervals."""
        from editlab.viz.locate import trace_lines

        return trace_lines(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().nlargest(8, 'effect').to_html(index=False)}"


def roles(n_tokens: int, subject: tuple[int, int]) -> list[list[int]]:
    """The tokens of each role in `ROLES`; those before the subject, where every effect is zero, have none."""
    first, last, end = subject[0], subject[1] - 1, n_tokens - 1
    return [
        [first] if first < last else [],
        list(range(first + 1, last)),
        [last],
        [last + 1] if last + 1 < end else [],
        list(range(last + 2, end)),
        [end] if end > last else [],
    ]


def state_in_words(config: Config, n_layers: int) -> str:
    """What is restored: "residual", or "mlp of 6 layers around"."""
    width = len(config.layers(n_layers // 2, n_layers))
    return config.kind if width == 1 else f"{config.kind} of {width} layers"


def _standard_error(restored: np.ndarray, p_corrupt: np.ndarray) -> np.ndarray:
    """Of the difference of two means over noise samples, the last axis, as if each had samples of its own."""
    n = len(p_corrupt)
    if n < 2:
        return np.full(restored.shape[:-1], np.nan)
    return np.asarray(np.sqrt((restored.var(-1, ddof=1) + p_corrupt.var(ddof=1)) / n))


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    counts = present.sum(0)
    return np.asarray(np.where(counts > 0, np.where(present, values, 0.0).sum(0) / np.maximum(counts, 1), np.nan))
