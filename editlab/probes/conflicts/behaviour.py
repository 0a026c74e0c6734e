"""Who wins: shares of answers from memory and from the context, under each format of context.

Rows that are always there: `closed-book` (no context: what memory gives), `agreeing` (the context says what the model
knows), `irrelevant` (the context contradicts another subject's fact). Greedy first tokens; no model judges.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from editlab.data.conflicts import Case
from editlab.probes.conflicts.items import Items, ItemSettings, build_items
from editlab.probes.conflicts.rates import Rates, by_subject, rates
from editlab.probes.conflicts.readout import Answers, read
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

CLOSED, AGREEING = "closed-book", "agreeing"


@dataclass(frozen=True)
class Popularity:
    """Spearman's correlation of a subject's popularity with its mean LD."""

    r: float
    p: float
    n: int


@dataclass(frozen=True)
class Behaviour(Saved):
    """Rates of one relation or file.

    Attributes:
        rows: by format and condition. items: of the first format. answers: of the first format's conflicts.
    """

    rows: tuple[Rates, ...]
    items: Items
    answers: Answers
    popularity: Popularity | None
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        row = next(r for r in self.rows if r.condition == self.items.settings.format)
        return (
            f"{self.items.relation}, {row.condition}: {row.memory.mean:.0%} from memory ({row.memory.low:.0%} to "
            f"{row.memory.high:.0%}), {row.context.mean:.0%} from the context ({row.context.low:.0%} to "
            f"{row.context.high:.0%}), {row.other.mean:.0%} other; {row.items} conflicts about {row.memory.n} subjects."
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per condition."""
        import pandas as pd

        return pd.DataFrame([row.to_record() for row in self.rows])

    def plot(self) -> go.Figure:
        """Stacked shares, one bar a condition."""
        from editlab.viz.conflicts import conflict_shares

        return conflict_shares(self.rows)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


def probe(
    lm: LM,
    cases: Sequence[Case],
    settings: ItemSettings | None = None,
    *,
    formats: Sequence[str] = (),
    on_step: OnStep = silent,
) -> Behaviour:
    """Ask the model with and without contexts that contradict it.

    Args:
        formats: further formats of context; each has items of its own, about the facts known under its prompt.

    Raises:
        RequestError: the model knows too few of the facts.
    """
    settings = settings or ItemSettings()
    wanted = list(dict.fromkeys([settings.format, *formats, "irrelevant"]))
    rows: list[Rates] = []
    first: tuple[Items, Answers] | None = None
    for i, name in enumerate(wanted):
        on_step(StepInfo("asking", i, len(wanted), "formats", name))
        items = build_items(lm, cases, settings.model_copy(update={"format": name}), on_step=on_step)
        if first is None or name == "question":
            label = CLOSED if first is None else f"{CLOSED} ({name})"
            rows.append(rates(label, read(lm, items, lambda item: item.query)))
        answers = read(lm, items)
        rows.append(rates(name, answers))
        if first is None:
            first = items, answers
            rows.append(rates(AGREEING, read(lm, items, lambda item: item.agreeing)))
    on_step(StepInfo("asking", len(wanted), len(wanted), "formats"))
    assert first is not None
    return Behaviour(tuple(rows), *first, _popularity(*first), lm.name)


def _popularity(items: Items, answers: Answers) -> Popularity | None:
    known = {item.case.subject: item.case.popularity for item in items.items}
    values = [known[subject] for subject in dict.fromkeys(answers.subjects)]
    if len(values) < 8 or any(value is None for value in values):
        return None
    found = stats.spearmanr(np.array(values, dtype=float), by_subject(answers.difference, answers.subjects))
    return Popularity(float(found.statistic), float(found.pvalue), len(values))
