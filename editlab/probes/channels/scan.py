"""All pairs of heads of a model, scored and ranked: which channels the weights suggest.

The rule: a score is an outlier when fewer than one in 10,000 scores of pairs in the wrong order are as large
(`p`, the backward null) and it is among the 20 best of its reader. q corrects p for the number of pairs looked at
(Benjamini-Hochberg); z is how far the score lies from the median of its reader's earlier writers, in robust standard
deviations. All of it says where to look: on trained models most such outliers do nothing for a given task, so every
row is "weight-only" until `causal.py` has intervened.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from editlab.config import MethodConfig
from editlab.probes.channels.composition import Composition, component_scores, compose
from editlab.probes.channels.factors import Factors, factorise
from editlab.probes.channels.nulls import Tail, adjusted_top, robust
from editlab.probes.channels.pairs import rank1_shares
from editlab.probes.channels.parts import MODES, Channel, Mode, Part
from editlab.progress import OnStep, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

Level = Literal["head", "component", "pair"]
LEVELS: dict[Level, str] = {
    "head": "whole heads",
    "component": "components of the writer into whole heads",
    "pair": "the best pair of components of each two heads",
}


class Config(MethodConfig):
    """How channels are looked for."""

    modes: tuple[Mode, ...] = Field(default=MODES, description="what the reader composes with: q, k, v")
    delta: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="tokens from key to query; several: mean square"
    )
    top: int = Field(default=32, ge=1, le=4096, description="components kept for each reader")
    p: float = Field(default=1e-4, gt=0, lt=1, description="an outlier's p under the backward null is below this")
    rank: int = Field(default=20, ge=1, description="and it is among so many best of its reader")


@dataclass(frozen=True, eq=False)
class Scan(Saved):
    """Scores of all pairs of a model's heads, as `to_pandas` or on a map.

    Attributes:
        factors: the components, at the first of the distances between query and key.
        compositions: scores by mode.
    """

    factors: Factors
    compositions: dict[Mode, Composition]
    config: Config
    model: str

    def to_pandas(
        self,
        level: Level = "component",
        *,
        modes: Sequence[Mode] | None = None,
        target: Part | None = None,
        source: Part | None = None,
        limit: int | None = 20,
    ) -> pd.DataFrame:
        """The best scores first: outliers by p, then by score.

        Args:
            target, source: only these; a head stands for all its components.
            limit: rows; None for all that were kept. Few rows have `rank1_share`: it is worked out for those shown.
        """
        import pandas as pd

        tables = [self._table(self.compositions[mode], level) for mode in modes or self.compositions]
        table = pd.concat(tables, ignore_index=True)
        n, e = self.factors.n_heads, self.factors.width
        if target is not None:
            target.check(self.factors.n_layers, n, e)
            table = table[table["_reader"] == target.layer * n + target.head]
        if source is not None:
            source.check(self.factors.n_layers, n, e)
            table = table[table["_writer"] == source.layer * n + source.head]
            if source.component is not None and level != "head":
                table = table[table["source"] == str(source)]
        table = table.sort_values(["outlier", "p", "score"], ascending=[False, True, False], kind="stable")
        if limit is not None:
            table = table.head(limit).copy()
            for mode in table["mode"].unique():
                rows = table["mode"] == mode
                where = table.loc[rows, "_writer"].to_numpy(), table.loc[rows, "_reader"].to_numpy()
                table.loc[rows, "rank1_share"] = rank1_shares(self.factors, mode, *where)
        table["status"] = "weight-only"
        return table.drop(columns=["_writer", "_reader"]).reset_index(drop=True)

    def channels(self, level: Level = "component", limit: int = 20, **only: object) -> list[Channel]:
        """The first rows of the table as channels to be tested; those that are no outliers are left out."""
        rows = self.to_pandas(level, limit=limit, **only)  # type: ignore[arg-type]
        named = rows[rows["outlier"]].drop_duplicates(["source", "target", "mode"]).to_dict("records")
        return [Channel(Part.parse(r["source"]), Part.parse(r["target"]).whole, r["mode"]) for r in named]

    def look_up(self, channel: Channel) -> tuple[float, int, float]:
        """Score, rank among the reader's earlier writers, and p of one channel: of a component, or of a whole head."""
        f, mode = self.factors, channel.mode
        a, b = f.index(channel.source), f.index(channel.target)
        found = self.compositions[mode]
        earlier = channel.target.layer * f.n_heads
        if channel.source.component is None:
            score, level = float(found.head[a, b]), "head"
            rank = 1 + int((found.head[:earlier, b] > score).sum())
        else:
            score, level = float(component_scores([f], mode, a, b)[channel.source.component]), "component"
            every = np.concatenate([component_scores([f], mode, i, b) for i in range(earlier)])
            rank = 1 + int((every > score + 1e-7).sum())
        return score, rank, float(self.null(mode, level).p(np.array([score]))[0])  # type: ignore[arg-type]

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        found = self.to_pandas(limit=None)
        best = found.iloc[0]
        n = int(found["outlier"].sum())
        tests = sum(c.n_forward for c in self.compositions.values())
        return (
            f"{n} of {tests:,} component-to-head scores are outliers in the weights (about {self.config.p * tests:.0f} "
            f"expected by chance); first {best.source} → {best.target} ({best['mode'].upper()}): {best.score:.3f}, "
            f"p {best.p:.1e}. None of them is shown to do anything yet."
        )

    def plot(self, mode: Mode | None = None, value: str = "best") -> go.Figure:
        """Writers down, readers across; see `editlab.viz.channels.composition_map`."""
        from editlab.viz.channels import composition_map

        modes: list[Mode] = list(self.compositions)
        return composition_map(self, mode or modes[0], value)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"

    @property
    def forward(self) -> np.ndarray:
        """(N, N) pairs in which the writer's layer is the lower one."""
        layer = np.arange(self.factors.n) // self.factors.n_heads
        return layer[:, None] < layer[None, :]

    def null(self, mode: Mode, level: Level | Literal["strongest"]) -> Tail:
        """The backward null of a mode and of what is scored.

        Args:
            level: "strongest" is the largest component to head score of two heads, which by chance alone is larger than
                that of a component that was named beforehand.
        """
        found = self.compositions[mode]
        if level == "component":
            return found.tail
        if level == "strongest":
            return found.strongest_tail
        tail = Tail()
        scores = found.head if level == "head" else found.best
        tail.add(scores[self.forward.T & ~np.isnan(scores)])
        return tail

    def _table(self, found: Composition, level: Level) -> pd.DataFrame:
        import pandas as pd

        f, forward = self.factors, self.forward
        tail = self.null(found.mode, level)
        if level == "component":
            reader, place = np.nonzero(found.top_at >= 0)
            writer, component = np.divmod(found.top_at[reader, place], f.width)
            score, rank = found.top[reader, place], place + 1
            middle, spread, n_tests = found.middle[reader], found.spread[reader], found.n_forward
            sources = _names(f, writer, component)
            targets = _names(f, reader)
            fuzzy = f.degenerate_ov.cpu().numpy()[writer, component]
        else:
            scores = found.head if level == "head" else found.best
            writer, reader = np.nonzero(forward)
            score, n_tests = scores[writer, reader], int(forward.sum())
            ranks = np.where(forward, -scores, np.inf).argsort(0, kind="stable").argsort(0, kind="stable")
            rank = ranks[writer, reader] + 1
            middles, spreads = _columns(scores, forward)
            middle, spread = middles[reader], spreads[reader]
            i, j = found.best_at[writer, reader].T
            if level == "head":
                sources, targets = _names(f, writer), _names(f, reader)
                fuzzy = np.zeros(len(writer), dtype=bool)
            else:
                sources, targets = _names(f, writer, i), _names(f, reader, j)
                read = f.degenerate_ov if found.mode == "v" else f.degenerate_qk
                fuzzy = f.degenerate_ov.cpu().numpy()[writer, i] | read.cpu().numpy()[reader, j]
        p = tail.p(score)
        return pd.DataFrame(
            {
                "source": sources,
                "target": targets,
                "mode": found.mode,
                "score": score.astype(float),
                "rank": rank,
                "z": (score - middle) / np.where(spread > 0, spread, np.nan),
                "p": p,
                "q": adjusted_top(p, n_tests),
                "outlier": (p < self.config.p) & (rank <= self.config.rank),
                "rank1_share": np.nan,
                "degenerate": fuzzy,
                "_writer": writer,
                "_reader": reader,
            }
        )


def _names(factors: Factors, heads: np.ndarray, components: np.ndarray | None = None) -> list[str]:
    if components is None:
        return [str(factors.part(h)) for h in heads.tolist()]
    return [str(factors.part(h, i)) for h, i in zip(heads.tolist(), components.tolist(), strict=True)]


def _columns(scores: np.ndarray, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust spread of each reader's earlier writers; NaN for the first layer's."""
    middle, spread = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    for b in np.flatnonzero(forward.any(0)):
        middle[b], spread[b] = robust(scores[forward[:, b], b])
    return middle, spread


def scan(lm: LM, config: Config | None = None, on_step: OnStep = silent) -> Scan:
    """Score all pairs of heads of a model, as its weights stand now.

    Raises:
        ModelError: the heads could not be made out. SiteUnavailable: a distance other than 0 was asked for where
            rotations cannot be measured.
    """
    config = config or Config()
    several = [factorise(lm, delta, prove=i == 0, on_step=on_step) for i, delta in enumerate(config.delta)]
    return scan_factors(several, config, lm.name, on_step)


def scan_factors(several: Sequence[Factors], config: Config, name: str = "", on_step: OnStep = silent) -> Scan:
    """The same for factors at hand."""
    found: dict[Mode, Composition] = {
        mode: compose(several, mode, top=config.top, on_step=on_step) for mode in dict.fromkeys(config.modes)
    }
    return Scan(several[0], found, config, name)
