"""What causal tracing gives: effects by layer and token, their average over facts, and where an edit may be tried."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.probes.trace import Config

ROLES = (
    "first subject token", "middle subject tokens", "last subject token", "next token", "further tokens", "last token",
)  # fmt: skip


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

    @property
    def peak(self) -> tuple[int, int]:
        """Layer and token of the largest effect."""
        layer, token = np.unravel_index(int(self.effect.argmax()), self.effect.shape)
        return int(layer), int(token)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        layer, token = self.peak
        return (
            f"'{self.answer.strip()}': P {self.p_clean:.1%} clean, {self.p_corrupt.mean():.1%} corrupted; the "
            f"{self.config.kind} at layer {layer}, token '{self.tokens[token].strip()}' restores most "
            f"(+{self.effect[layer, token]:.1%})."
        )

    def by_role(self) -> np.ndarray:
        """(L, 6) effects averaged over the tokens of each role in `ROLES`; NaN where a prompt has none."""
        out = np.full((len(self.effect), len(ROLES)), np.nan)
        for i, tokens in enumerate(roles(len(self.tokens), self.subject)):
            if tokens:
                out[:, i] = self.effect[:, tokens].mean(1)
        return out

    def suggest_layers(self) -> tuple[int, ...]:
        """See `suggest`."""
        return suggest(self.by_role())

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
    """

    effects: np.ndarray
    p_clean: np.ndarray
    p_corrupt: np.ndarray
    left_out: tuple[tuple[str, str], ...]
    config: Config
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        best = self.to_pandas().dropna(subset="effect").nlargest(1, "effect").to_dict("records")[0]
        interval = f" ({best['low']:.1%} to {best['high']:.1%})" if np.isfinite(best["low"]) else ""
        return (
            f"{len(self.effects)} facts: total effect {float((self.p_clean - self.p_corrupt).mean()):.1%}; the "
            f"{self.config.kind} restores most at the {best['role']}, layer {best['layer']}: {best['effect']:.1%}"
            f"{interval}; {len(self.left_out)} facts left out."
        )

    def suggest_layers(self) -> tuple[int, ...]:
        """See `suggest`."""
        present = ~np.isnan(self.effects)
        counts = present.sum(0)
        sums = np.where(present, self.effects, 0.0).sum(0)
        return suggest(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))

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
                rows.append({"layer": layer, "role": role, "effect": e.mean, "low": e.low, "high": e.high, "n": e.n})
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


def suggest(effects: np.ndarray) -> tuple[int, ...]:
    """Where an edit may be tried: the layers around the peak at the last subject token with four fifths of its effect.

    A hint, not a rule: the best layer to edit is often another one ("Does Localization Inform Editing?", arXiv
    2301.04213); a sweep of edits decides.

    Args:
        effects: (L, 6) by role.
    """
    at_subject = effects[:, ROLES.index("last subject token")]
    peak = int(np.nanargmax(at_subject))
    bound = 0.8 * at_subject[peak]
    low = high = peak
    while low > 0 and at_subject[low - 1] >= bound:
        low -= 1
    while high < len(at_subject) - 1 and at_subject[high + 1] >= bound:
        high += 1
    return tuple(range(low, high + 1))


def in_words(layers: tuple[int, ...]) -> str:
    """The suggestion as a sentence."""
    named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    return (
        f"Worth trying for an edit: {named}, where the last subject token restores at least four fifths of its peak. "
        "The best layer is often another; 'editlab tune' finds it by editing."
    )
