"""One study of steering list recall with given components: scaled, set by place, and where places are in the subspace.

Everything is chosen on dev prompts and judged on test prompts, which share no item and no name with them; see `steer`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from editlab.config import MethodConfig
from editlab.probes.channels.factors import Factors, factorise
from editlab.probes.channels.parts import Part
from editlab.probes.channels.steer import Chart, Gain, chart, search_scale, steer_to_positions
from editlab.probes.channels.tasks import laundry
from editlab.progress import OnStep, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM


class Config(MethodConfig):
    """How list recall is steered."""

    length: int = Field(default=4, ge=2, le=20, description="items of a list")
    dev: int = Field(default=8, ge=1, le=200, description="prompts a place in the list, to choose on")
    test: int = Field(default=24, ge=2, le=200, description="prompts a place in the list, to judge on")
    samples: int = Field(default=48, ge=2, le=4096, description="points of the subspace that are tried")
    controls: int = Field(default=20, ge=0, le=200, description="random components scaled by the same factor")
    spaces: int = Field(default=5, ge=0, le=50, description="random subspaces steered in the same way")
    seed: int = Field(default=0, ge=0, description="of prompts, points and controls")


@dataclass(frozen=True, eq=False)
class Steering(Saved):
    """What scaling components and setting their coordinates does to list recall."""

    scaled: Gain
    placed: Gain
    chart: Chart

    @property
    def headline(self) -> str:
        """What was found, a sentence for each way."""
        return f"{self.scaled.headline} {self.placed.headline} {self.chart.headline}"

    def to_pandas(self) -> pd.DataFrame:
        """A row for each way of steering."""
        import pandas as pd

        rows = []
        for gain in (self.scaled, self.placed):
            paired = gain.paired
            rows.append(
                {
                    "what": gain.chosen,
                    "base": float(gain.base.right.mean()),
                    "steered": float(gain.steered.right.mean()),
                }
                | {"gain": paired.difference.mean, "low": paired.difference.low, "high": paired.difference.high}
                | {"n": paired.difference.n, "p": paired.p, "chance": gain.base.chance}
                | {"controls_high": float(gain.controls.max()) if len(gain.controls) else None, "helps": gain.helps}
            )
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Where in the subspace each place of a list is picked."""
        return self.chart.plot()

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


def steering(
    lm: LM,
    parts: Sequence[Part],
    config: Config | None = None,
    on_step: OnStep = silent,
    *,
    factors: Factors | None = None,
) -> Steering:
    """Steer list recall with components of one or several heads.

    Args:
        factors: of the same weights, for matched controls; made if they are left out.

    Raises:
        RequestError: no component is named, or one of the last layer, after which nothing reads.
    """
    c = config or Config()
    dev = laundry(lm, c.length, c.dev, split="dev", seed=c.seed)
    test = laundry(lm, c.length, c.test, split="test", seed=c.seed)
    few = laundry(lm, c.length, max(1, c.dev // 2), seed=c.seed)
    where = chart(lm, parts, few, samples=c.samples, seed=c.seed, on_step=on_step)
    factors = factorise(lm) if factors is None else factors
    scaled = search_scale(lm, parts, dev, test, factors, controls=c.controls, seed=c.seed, on_step=on_step)
    placed = steer_to_positions(
        lm, parts, dev, test, samples=c.samples, controls=c.spaces, seed=c.seed, on_step=on_step
    )
    return Steering(scaled, placed, where)
