"""What heads attend to on generated prompts: previous-token, duplicate-token, induction, inhibition and mover heads.

With A a head's attention, T the period of random tokens that are repeated, q the positions of the second round:

    previous   mean A[q, q - 1]            duplicate  mean A[q, q - T]      induction  mean A[q, q - T + 1]
    mover      A[END, answer] - A[END, the repeated name where it stands first]    on `tasks.ioi`
    inhibition A[END, the repeated name where it stands again]                     on `tasks.ioi`

One number per sequence or prompt, so every score has an interval: 95 %, over sequences, and over templates for the last
two. A head is said to have a role from a threshold on. `matched` scores any prompts by an attention mask, as
TransformerLens's `detect_head` does.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from editlab.config import MethodConfig
from editlab.hooks.batch import Batch, pad_rows
from editlab.probes.channels import tasks
from editlab.probes.channels.intervals import clustered
from editlab.progress import OnStep, StepInfo, silent
from editlab.state.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

ROLES = ("previous", "duplicate", "induction", "mover", "inhibition")
ROWS = 8  # sequences of one forward pass


class Config(MethodConfig):
    """How roles are measured."""

    sequences: int = Field(default=16, ge=2, le=1000, description="sequences of repeated random tokens")
    period: int = Field(default=48, ge=4, le=500, description="tokens that are repeated")
    prompts: int = Field(default=200, ge=2, le=5000, description="prompts with two names")
    threshold: float = Field(default=0.4, gt=0, lt=1, description="a head has a role from this score on")
    seed: int = Field(default=0, ge=0, description="of tokens and prompts")


@dataclass(frozen=True, eq=False)
class HeadRoles(Saved):
    """Scores of every head.

    Attributes:
        scores: by role (n, L, H), one for each sequence or prompt. groups: by role (n,) what was drawn together.
    """

    scores: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    config: Config
    model: str

    def to_pandas(self, role: str | None = None, limit: int | None = None) -> pd.DataFrame:
        """Heads by role, highest first; only rows within the limit have their intervals worked out."""
        import pandas as pd

        rows = []
        for name in [role] if role else self.scores:
            values = self.scores[name]
            means = values.mean(0)
            order = np.argsort(-means, axis=None, kind="stable")[:limit]
            for layer, head in zip(*np.unravel_index(order, means.shape), strict=True):
                e = clustered(values[:, layer, head], self.groups[name], seed=self.config.seed)
                rows.append(
                    {"role": name, "head": f"{layer}.{head}", "score": e.mean, "low": e.low, "high": e.high, "n": e.n}
                    | {"has_role": bool(e.mean >= self.config.threshold)}
                )
        return pd.DataFrame(rows)

    def heads(self, role: str, threshold: float | None = None) -> list[str]:
        """Those that have the role, highest first."""
        means = self.scores[role].mean(0)
        found = np.argwhere(means >= (self.config.threshold if threshold is None else threshold))
        return [f"{a}.{b}" for a, b in sorted(found.tolist(), key=lambda at: -means[at[0], at[1]])]

    @property
    def headline(self) -> str:
        """One sentence."""
        said = [f"{role} {', '.join(self.heads(role)[:4]) or 'none'}" for role in self.scores]
        return f"Heads from {self.config.threshold:g} on: {'; '.join(said)}."

    def plot(self) -> go.Figure:
        """A map of layers and heads, one role at a time."""
        from editlab.viz.channels import roles_map

        return roles_map(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas(limit=5).to_html(index=False)}"


def head_roles(lm: LM, config: Config | None = None, on_step: OnStep = silent) -> HeadRoles:
    """Score every head.

    Raises:
        RequestError: the tokenizer has too few names as single tokens.
    """
    config = config or Config()
    T = config.period
    batch = repeated(lm, config.sequences, T, config.seed)
    parts: dict[str, list[np.ndarray]] = {role: [] for role in ROLES}
    total = config.sequences + config.prompts
    for start in range(0, config.sequences, ROWS):
        on_step(StepInfo("reading attention", start, total, "prompts"))
        pattern = patterns(lm, batch.rows(range(start, min(start + ROWS, config.sequences))))
        for role, found in on_repeats(pattern, T).items():
            parts[role].append(found)
    prompts = tasks.ioi(lm, config.prompts, seed=config.seed)
    for start in range(0, len(prompts), 4 * ROWS):
        on_step(StepInfo("reading attention", config.sequences + start, total, "prompts"))
        some = prompts[start : start + 4 * ROWS]
        rows = tasks.batch_of(some, lm.device)
        at_end = [layer[:, :, -1] for layer in patterns(lm, rows)]  # (B, H, S) each
        for role, found in on_names(at_end, rows, some).items():
            parts[role].append(found)
    on_step(StepInfo("reading attention", total, total, "prompts"))
    scores = {role: np.concatenate(found) for role, found in parts.items()}
    sequence, template = np.arange(config.sequences), np.array([p.template for p in prompts])
    groups = {role: template if role in ("mover", "inhibition") else sequence for role in ROLES}
    return HeadRoles(scores, groups, config, lm.name)


def repeated(lm: LM, n: int, period: int, seed: int = 0) -> Batch:
    """Rows of the sink, `period` random tokens, and the same again."""
    special = set(lm.tokenizer.all_special_ids)
    # Sorted, because the vocabulary comes in another order in every process.
    own = np.array(sorted(i for i in lm.tokenizer.get_vocab().values() if i not in special))
    rng = np.random.default_rng(seed)
    sink = lm.need_sink()
    rows = [rng.choice(own, period, replace=len(own) < period) for _ in range(n)]
    return pad_rows([[*sink, *row.tolist(), *row.tolist()] for row in rows], device=lm.device)


def patterns(lm: LM, batch: Batch) -> list[Tensor]:
    """Attention (B, H, T, T) of every layer."""
    with lm.session() as s, torch.no_grad():
        s.capture("pattern")
        seen = s.run(batch, read=None).captured
    return [seen["pattern", layer] for layer in range(lm.adapter.n_layers)]


def on_repeats(pattern: Sequence[Tensor], period: int) -> dict[str, np.ndarray]:
    """(B, L, H) scores of attention (B, H, S + 2 T, S + 2 T) on the sink's S tokens and two rounds of T tokens."""
    width = pattern[0].shape[-1]
    second = torch.arange(width - period, width)
    found = {"previous": 1, "duplicate": period, "induction": period - 1}
    stacked = {
        role: torch.stack([layer[:, :, second, second - back].mean(-1) for layer in pattern], 1)
        for role, back in found.items()
    }
    return {role: value.float().cpu().numpy() for role, value in stacked.items()}


def on_names(at_end: Sequence[Tensor], rows: Batch, prompts: Sequence[tasks.Prompt]) -> dict[str, np.ndarray]:
    """(B, L, H) scores of attention (B, H, S) from END on prompts with two names."""
    first = rows.first.tolist()

    def at(columns: list[int]) -> Tensor:
        index = torch.tensor([a + c for a, c in zip(first, columns, strict=True)], device=rows.ids.device)
        return torch.stack(
            [layer.gather(-1, index[:, None, None].expand(-1, layer.shape[1], 1))[..., 0] for layer in at_end], 1
        )

    answer = at([p.first[p.target] for p in prompts])
    rival = at([p.first[1 - p.target] for p in prompts])
    again = at([p.second[1 - p.target] for p in prompts])
    found = {"mover": answer - rival, "inhibition": again}
    return {role: value.float().cpu().numpy() for role, value in found.items()}


def matched(pattern: Tensor, mask: Tensor, *, exclude_first: bool = True, exclude_own: bool = False) -> Tensor:
    """(..., H) the share of attention (..., H, T, T) that falls on `mask` (T, T).

    Args:
        exclude_first: leave the first token out of both, where models park attention that has no place to go.
        exclude_own: leave out what a token pays to itself.
    """
    counted = torch.ones_like(mask, dtype=torch.bool).tril()
    if exclude_first:
        counted[:, 0] = False
    if exclude_own:
        counted.fill_diagonal_(False)
    kept = pattern * counted.to(pattern)
    return (kept * mask.to(pattern)).sum((-1, -2)) / kept.sum((-1, -2)).clamp(min=1e-12)
