"""Who answers a prompt, and why: the routing of side memories, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from editlab.display import html_table
from editlab.lm import LM
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table


@dataclass(frozen=True)
class Route:
    """One prompt at one routed module.

    Attributes:
        answers: the bank, or "model" for the model as it is. margin: the best indicator over its threshold; above 1 a
            bank answers. why: in a sentence.
    """

    prompt: str
    path: str
    answers: str
    margin: float
    why: str


@dataclass(frozen=True)
class Routing(Saved):
    """The routes of some prompts."""

    routes: tuple[Route, ...]

    def to_pandas(self) -> pd.DataFrame:
        """A row per prompt and module."""
        import pandas as pd

        return pd.DataFrame([asdict(route) for route in self.routes])

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption="An indicator above its threshold (over 1) sends the prompt to the side memory.")
        for name in ("prompt", "answered by", "indicator / threshold", "why"):
            table.add_column(name)
        for r in self.routes:
            table.add_row(*(Text(x) for x in (r.prompt, r.answers, f"{r.margin:.2f}", r.why)))
        return table

    def plot(self) -> go.Figure:
        """Indicators over thresholds, a point a prompt."""
        from editlab.viz.routing import routing_points

        return routing_points(self)

    def _repr_html_(self) -> str:
        head = ("prompt", "answered by", "indicator / threshold", "why")
        return html_table(head, ((r.prompt, r.answers, f"{r.margin:.2f}", r.why) for r in self.routes))


def routing_of(lm: LM, prompts: Sequence[str], *, sink: bool = False, batch_rows: int = 64) -> Routing:
    """The routes of `prompts` under the side memories in force; runs no block above the last of them."""
    routes = []
    layers = {i for i, paths in enumerate(lm.adapter.layers) if paths.down in lm.routes.layers}
    for start in range(0, len(prompts) if layers else 0, batch_rows):
        chunk = list(prompts[start : start + batch_rows])
        with torch.no_grad(), lm.routes.exactly():
            lm.capture(lm.encode(chunk, sink=sink), [("mlp_value", i) for i in sorted(layers)])
        for path, layer in lm.routes.layers.items():
            decision = lm.routes.last[path]
            for prompt, scores, chosen in zip(chunk, decision.scores, decision.chosen.tolist(), strict=True):
                answers = "model" if chosen < 0 else layer.name(chosen)
                margin = float(layer.margin(scores).max())
                routes.append(Route(prompt, path, answers, margin, layer.why(scores, chosen)))
    return Routing(tuple(routes))
