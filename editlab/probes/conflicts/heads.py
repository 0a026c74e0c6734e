"""Which heads decide: path-patching scores of every head, with errors, names and a reliability check.

S_both ranks heads. The pair (S_subject, S_context) says what kind a head is: destroying the subject takes memory away
and keeps the context, destroying the context's answer does the reverse. So

    recall           S_subject > 0: it brings memory's answer
    copy             S_context < 0: it brings the context's answer
    copy suppression S_context > 0: it writes against the context's answer, and recalls nothing
    superposed       recall and copy at once (JuICE, arXiv 2503.10996, objects that such heads have no one role)

A head is named only if its mean over subjects differs from 0 (Student's t) at a false discovery rate of 5 % over all
heads of the model (Benjamini-Hochberg), and three quarters of the subjects agree on the sign; a score below a fifth of
the head's other one gives it no role.
"""

from __future__ import annotations

import html
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from editlab.config import MethodConfig
from editlab.evaluation.statistics import adjusted
from editlab.hooks.heads import Head, head_name
from editlab.probes.conflicts.items import Items
from editlab.probes.conflicts.path_patching import Corruption, Estimand, head_scores
from editlab.probes.conflicts.rates import by_subject
from editlab.progress import OnStep, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from editlab.lm import LM

Direction = Literal["memory", "context"]
EXACT_LIMIT = 2000  # heads that are patched exactly without a gradient pass first
SHARE = 0.05  # of the heads at either end that are patched exactly where there are more
SPOT_CHECKS = 20
FALSE_DISCOVERIES = 0.05  # of the heads that are named
AGREEING = 0.75  # of the subjects, on the sign
MINOR = 0.2  # of the larger of the two scores: a smaller one does not make a role


class HeadSettings(MethodConfig):
    """How heads are scored."""

    estimand: Estimand = Field(default="path", description="path, direct, total or gradient")
    draws: int = Field(default=2, ge=1, le=2, description="corrupted prompts per item")
    exact: bool | None = Field(
        default=None,
        description="patch every head exactly; default where there are at most 2,000, else after a gradient pass",
    )


@dataclass(frozen=True)
class HeadMap(Saved):
    """Scores of all heads of a model on some items.

    Attributes:
        scores: by corruption (subjects, L, H), in logits; NaN where a head was not patched.
        gradient: (L, H) mean gradient scores of the corruption "both", if computed.
        missed: the largest |S| among spot-checked heads that the gradient pass had passed over; None without one.
        n_kv_heads: how many key-value heads a layer has.
    """

    scores: dict[str, np.ndarray]
    gradient: np.ndarray | None
    missed: float | None
    items: int
    n_kv_heads: int
    settings: HeadSettings
    relation: str
    format: str
    model: str

    @cached_property
    def mean(self) -> np.ndarray:
        """(L, H) S_both, from the gradient where it was not patched."""
        exact = self.scores["both"].mean(0)
        return exact if self.gradient is None else np.where(np.isnan(exact), self.gradient, exact)

    @property
    def n_subjects(self) -> int:
        """How many subjects the scores are over."""
        return len(self.scores["both"])

    def error(self, corruption: str = "both") -> np.ndarray:
        """(L, H) standard errors over subjects."""
        values = self.scores[corruption]
        return values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1:], np.inf)

    @cached_property
    def reliability(self) -> float:
        """Mean correlation of S_both between random halves of the subjects (100 halvings); NaN with fewer than 4."""
        values = self.scores["both"].reshape(self.n_subjects, -1)
        values = values[:, ~np.isnan(values).any(0)]
        if len(values) < 4:
            return float("nan")
        rng = np.random.default_rng(0)
        found = []
        for _ in range(100):
            order = rng.permutation(len(values))
            half = len(values) // 2
            found.append(np.corrcoef(values[order[:half]].mean(0), values[order[half:]].mean(0))[0, 1])
        return float(np.mean(found))

    @cached_property
    def q_values(self) -> dict[str, np.ndarray]:
        """(L, H) by corruption: p of a mean of 0 over subjects, adjusted for all heads; 1 where a head was not patched.

        Heads that a gradient pass over the same subjects had passed over count as tested: they were chosen among all.
        """
        found = {}
        for name, values in self.scores.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                t = np.abs(values.mean(0)) / self.error(name)
            p = np.nan_to_num(2 * stats.t.sf(t, self.n_subjects - 1), nan=1.0)
            found[name] = np.reshape(adjusted(p.ravel().tolist()), p.shape)
        return found

    def is_named(self, corruption: str = "both") -> np.ndarray:
        """(L, H) bool: q below 5 %, and three quarters of the subjects agree on the sign."""
        return self._named[corruption]

    @cached_property
    def _named(self) -> dict[str, np.ndarray]:
        found = {}
        for name, values in self.scores.items():
            agree = (np.sign(values) == np.sign(values.mean(0))).mean(0)
            found[name] = (self.q_values[name] < FALSE_DISCOVERIES) & (agree >= AGREEING)
        return found

    def role(self, head: Head) -> str:
        """What kind of head it is; "" if nothing is established."""
        at = (slice(None), *head)
        if not {"subject", "context"} <= set(self.scores) or np.isnan(self.scores["subject"][at]).any():
            return ""
        subject, context = (self.scores[name][at].mean() for name in ("subject", "context"))
        least = MINOR * max(abs(subject), abs(context))
        sure = {
            name: bool(self.is_named(name)[head]) and abs(value) >= least
            for name, value in (("subject", subject), ("context", context))
        }
        recall, copy = sure["subject"] and subject > 0, sure["context"] and context < 0
        if recall and copy:
            return "superposed"
        if recall or copy:
            return "recall" if recall else "copy"
        return "copy suppression" if sure["context"] and context > 0 else ""

    def ranked(self, kind: Direction) -> list[Head]:
        """Memory heads (highest S first) or context heads (lowest S first); only those with that sign."""
        flat = self.mean.ravel()
        order = np.argsort(-flat if kind == "memory" else flat, kind="stable")
        width = self.mean.shape[1]
        return [(int(i) // width, int(i) % width) for i in order if (flat[i] > 0 if kind == "memory" else flat[i] < 0)]

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        ends = {kind: self.ranked(kind)[:1] for kind in ("memory", "context")}
        shown = " and ".join(
            f"{head_name(heads[0])} most towards {kind} ({self.mean[heads[0]]:+.2f})"
            for kind, heads in ends.items()
            if heads
        )
        named = int(self.is_named().sum())
        return (
            f"{self.relation}, {self.format}: {shown or 'no head moves anything'}, in logits; "
            f"{self.n_subjects} subjects, {named} of {self.mean.size} heads named (5 % false discoveries), "
            f"split-half r {self.reliability:.2f}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per head, the strongest first."""
        import pandas as pd

        n_layers, n_heads = self.mean.shape
        named, error, q = self.is_named(), self.error(), self.q_values["both"]
        group = n_heads // self.n_kv_heads
        rows = []
        for layer in range(n_layers):
            for head in range(n_heads):
                row = {
                    "head": head_name((layer, head)),
                    "layer": layer,
                    "number": head,
                    "kv_group": head // group,
                    "score": self.mean[layer, head],
                    "error": error[layer, head],
                    "q": q[layer, head],
                    "named": bool(named[layer, head]),
                    "role": self.role((layer, head)),
                }
                row |= {f"S_{name}": values[:, layer, head].mean() for name, values in self.scores.items()}
                if self.gradient is not None:
                    row["gradient"] = self.gradient[layer, head]
                rows.append(row)
        table = pd.DataFrame(rows)
        return table.iloc[table["score"].abs().argsort(kind="stable")[::-1]].reset_index(drop=True)

    def plot(self) -> go.Figure:
        """Layers down, heads across; purple and orange are the two directions."""
        from editlab.viz.conflicts import head_map

        return head_map(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().head(10).to_html(index=False)}"


def map_heads(lm: LM, items: Items, settings: HeadSettings | None = None, *, on_step: OnStep = silent) -> HeadMap:
    """Score every head on the items, with gradient scores beside the exact ones.

    Raises:
        ConfigError: there is no item.
    """
    settings = settings or HeadSettings()
    n_all = lm.adapter.n_layers * lm.adapter.n_heads
    exact = settings.exact if settings.exact is not None else n_all <= EXACT_LIMIT
    found = items.items
    rough = None
    chosen: list[Head] | None = None
    spots: list[Head] = []
    if settings.estimand != "gradient":
        scored = head_scores(lm, found, estimand="gradient", draws=settings.draws, on_step=on_step)["both"]
        rough = scored.mean(0).numpy()
        if not exact:
            chosen, spots = _to_verify(rough)
    scores = head_scores(
        lm,
        found,
        ("both", "subject", "context"),
        estimand=settings.estimand,
        draws=settings.draws,
        heads=None if chosen is None else [*chosen, *spots],
        on_step=on_step,
    )
    return head_map_of(lm, items, scores, settings, rough, spots)


def head_map_of(
    lm: LM,
    items: Items,
    scores: Mapping[Corruption, Tensor],
    settings: HeadSettings | None = None,
    gradient: np.ndarray | None = None,
    spots: Sequence[Head] = (),
) -> HeadMap:
    """A map from the scores (items, L, H) of `head_scores`.

    Args:
        spots: heads that were patched as spot checks of a gradient pass.
    """
    averaged = {}
    for name, values in scores.items():
        columns = [by_subject(column, items.subjects) for column in values.flatten(1).T.numpy()]
        averaged[str(name)] = np.stack(columns, -1).reshape(-1, *values.shape[1:])
    missed = max((abs(float(averaged["both"][:, layer, head].mean())) for layer, head in spots), default=None)
    return HeadMap(
        averaged,
        gradient,
        missed,
        len(items),
        lm.adapter.n_kv_heads,
        settings or HeadSettings(),
        items.relation,
        items.settings.format,
        lm.name,
    )


def _to_verify(rough: np.ndarray) -> tuple[list[Head], list[Head]]:
    """The heads at both ends of the gradient scores, and random others."""
    order = np.argsort(rough.ravel())
    n = max(1, round(SHARE * order.size))
    ends = [int(i) for i in (*order[:n], *order[-n:])]
    rest = [i for i in range(order.size) if i not in set(ends)]
    spots = random.Random(0).sample(rest, min(SPOT_CHECKS, len(rest)))
    width = rough.shape[1]
    return [divmod(i, width) for i in ends], [divmod(i, width) for i in spots]
