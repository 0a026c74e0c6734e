"""Pruning heads to turn the balance: how many, what it costs, and against what it has to be held (PH3-style).

Direction "memory" prunes context heads (lowest S), direction "context" prunes memory heads (highest S). In the manner
of PH3 (arXiv 2402.18154, whose own score could not be read) and of JuICE's application of it (arXiv 2503.10996):

1. Heads are ranked on discovery subjects.
2. K is chosen on validation subjects from a grid: the largest share of target answers, ties by the mean log-probability
   of the target. Ours in addition: a K is safe if the pruned model still gives at least 95 % of what it gave without a
   context, and perplexity on ordinary prose is at most 5 % higher. Where no K is safe that is said, and both the best
   safe one and the best of all are reported.
3. Test subjects are asked once, under every control: random heads of the same layers, heads of the wrong sign, heads
   that look most at the context's answer; and, for direction memory, the ceiling: leaving the context away.
"""

from __future__ import annotations

import html
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from editlab.config import MethodConfig
from editlab.data.corpus import held_out
from editlab.errors import ConfigError
from editlab.evaluation.statistics import Paired
from editlab.hooks.batch import pad_rows
from editlab.hooks.heads import Head, HeadGains, head_name
from editlab.probes.conflicts.heads import Direction, HeadMap
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.rates import Rates, by_subject, moved, rates
from editlab.probes.conflicts.readout import Answers, Prompts, judged
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.lm import LM

GRID = (1, 3, 5, 7, 9, 15)
PASSAGES, PASSAGE_TOKENS = 16, 129


class PruneSettings(MethodConfig):
    """How pruning is chosen and controlled."""

    direction: Direction = Field(default="context", description="where answers shall come from: memory or context")
    ablation: Literal["zero", "mean"] = Field(
        default="zero", description="what takes the place of a pruned head's output"
    )
    grid: tuple[int, ...] = Field(default=GRID, min_length=1, description="numbers of heads to try")
    min_recall: float = Field(default=0.95, ge=0, le=1, description="share of closed-book answers that a safe K keeps")
    max_perplexity: float = Field(default=1.05, ge=1, description="perplexity on prose over the unpruned one, at most")
    controls: int = Field(default=20, ge=0, le=200, description="random head sets of the same layers")
    seed: int = Field(default=0, ge=0, description="seed of the random sets")


@dataclass(frozen=True)
class KRow:
    """One K on validation subjects.

    Attributes:
        target: share of answers that are the target's. log_p: mean log-probability of the target.
        recall: closed-book answers kept, of those the unpruned model gives. perplexity: over the unpruned model's.
    """

    k: int
    heads: tuple[Head, ...]
    rates: Rates
    target: float
    log_p: float
    recall: float
    perplexity: float
    safe: bool


@dataclass(frozen=True)
class Control:
    """Rises of the target share by sets of heads that should not do it."""

    name: str
    rises: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the sets."""
        return float(np.mean(self.rises))

    @property
    def spread(self) -> tuple[float, float]:
        """Between which nineteen of twenty sets lie; NaN for a single one."""
        if len(self.rises) < 2:
            return float("nan"), float("nan")
        low, high = np.percentile(self.rises, [2.5, 97.5])
        return float(low), float(high)


@dataclass(frozen=True)
class Pruning:
    """A choice of heads and what it does to test subjects.

    Attributes:
        rows: every K on validation subjects. safe: the best K that keeps recall and perplexity; None if none does.
        best: the best K of all. base: unpruned test rates. ceiling: closed-book rates of the same items.
        tested: rates on test subjects by name ("K=5", "agreeing, K=5"). change: of the target share by K, for best
            and safe. costs: of the same, recall, perplexity and kl. controls: for the best K.
    """

    settings: PruneSettings
    rows: tuple[KRow, ...]
    safe: KRow | None
    best: KRow
    base: Rates
    ceiling: Rates
    tested: tuple[Rates, ...]
    change: dict[int, Paired]
    costs: dict[int, dict[str, float]]
    controls: tuple[Control, ...]
    items: int
    relation: str
    format: str
    model: str

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        to = self.settings.direction
        before = getattr(self.base, to)
        after = getattr(next(r for r in self.tested if r.condition == f"K={self.best.k}"), to)
        found = self.change[self.best.k].difference
        safe = (
            "no K keeps recall and perplexity"
            if self.safe is None
            else f"K={self.safe.k} is the best that keeps recall and perplexity"
            f" ({self.change[self.safe.k].difference.mean:+.0%})"
        )
        chance = self.controls[0].mean if self.controls else float("nan")
        return (
            f"Pruning {self.best.k} heads towards the {to}: {before.mean:.0%} -> {after.mean:.0%} of test answers "
            f"({found.mean:+.0%}, 95 % {found.low:+.0%} to {found.high:+.0%}; random heads {chance:+.0%}; "
            f"{self.base.memory.n} subjects); {safe}."
        )

    def to_pandas(self) -> pd.DataFrame:
        """Test rows: unpruned, pruned, ceiling; controls with the spread of their sets instead of an interval."""
        import pandas as pd

        to = self.settings.direction
        rows = [r.to_record() for r in (self.base, *self.tested, self.ceiling)]
        base = getattr(self.base, to).mean
        rows += [
            {
                "condition": f"{c.name}, K={self.best.k}",
                "items": self.items,
                "subjects": self.base.memory.n,
                to: base + c.mean,
                f"{to}_low": base + c.spread[0],
                f"{to}_high": base + c.spread[1],
            }
            for c in self.controls
        ]
        return pd.DataFrame(rows)

    def validation(self) -> pd.DataFrame:
        """One row per K on validation subjects."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "k": row.k,
                    "heads": " ".join(head_name(h) for h in row.heads),
                    **{k: v for k, v in row.rates.to_record().items() if k != "condition"},
                    "target_log_p": row.log_p,
                    "recall": row.recall,
                    "perplexity": row.perplexity,
                    "safe": row.safe,
                }
                for row in self.rows
            ]
        )

    def plot(self) -> go.Figure:
        """Shares against K on validation subjects, with recall, and the random band."""
        from editlab.viz.conflicts import pruning_curve

        return pruning_curve(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>{self.to_pandas().to_html(index=False)}"


class Bench:
    """A set of items and everything pruning is measured by, read many times.

    Args:
        lowest: the first layer in which heads will be pruned.
    """

    def __init__(self, lm: LM, items: Items, lowest: int) -> None:
        self.lm, self.items = lm, items
        self.conflict = Prompts(lm, [item.ids for item in items.items])
        self.closed = Prompts(lm, [item.closed for item in items.items])
        for prompts in (self.conflict, self.closed):
            prompts.freeze(lowest)
        self.base = self.answers(None)
        self.base_closed = self.closed_book(None)

    def answers(self, gains: HeadGains | None) -> Answers:
        """Answers to the conflicts."""
        return judged(self.conflict.every(gains), self.items)

    def closed_book(self, gains: HeadGains | None) -> Answers:
        """Answers without any context."""
        return judged(self.closed.every(gains), self.items)

    def recall(self, gains: HeadGains) -> float:
        """The share of closed-book answers that stays, of the unpruned model's right ones."""
        kept = self.base_closed.is_memory
        found = self.closed_book(gains).is_memory
        return float(found[kept].mean()) if kept.any() else float("nan")


class Prose:
    """Perplexity and KL on ordinary text (held-out passages of the factbook: 2,048 predicted tokens).

    Args:
        lowest: the first layer in which heads will be pruned.
    """

    def __init__(self, lm: LM, lowest: int = 0) -> None:
        rows = []
        for text in held_out():
            ids, _ = lm.tokens(text, sink=True)
            if len(ids) >= PASSAGE_TOKENS:
                rows.append(ids[:PASSAGE_TOKENS])
            if len(rows) == PASSAGES:
                break
        self.lm = lm
        self.batch = pad_rows(rows, pivots="right", device=lm.device)
        parts = [self.batch.rows(part) for part in torch.arange(len(rows)).split(4)]
        self.cones = [lm.prefix(part, lowest) for part in parts]
        self.base = self._log_probs(None)
        self.nll = self._nll(self.base)

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return self.batch.n_rows * (self.batch.width - 1)

    def cost(self, gains: HeadGains) -> dict[str, float]:
        """Perplexity over the unpruned model's, and the mean KL of the next token from it."""
        found = self._log_probs(gains)
        kl = float((self.base.exp() * (self.base - found)).sum(-1).mean())
        return {"perplexity": math.exp(self._nll(found) - self.nll), "kl": kl}

    def _log_probs(self, gains: HeadGains | None) -> Tensor:
        out = []
        for cone in self.cones:
            with self.lm.session() as s, torch.no_grad(), (gains or HeadGains({})).within(s):
                logits = s.run(cone).logits
            assert logits is not None
            out.append(logits[:, :-1].float().log_softmax(-1).cpu())
        return torch.cat(out)

    def _nll(self, log_probs: Tensor) -> float:
        return -float(log_probs.gather(-1, self.batch.ids.cpu()[:, 1:, None]).double().mean())


def prune(
    lm: LM,
    items: Items,
    heads: HeadMap,
    settings: PruneSettings | None = None,
    *,
    ranked: Sequence[Head] | None = None,
    on_step: OnStep = silent,
) -> Pruning:
    """Choose K on validation subjects and measure it on test subjects.

    Args:
        ranked: heads in the order in which they are pruned; default that of the scores.

    Raises:
        ConfigError: no head points the other way.
    """
    settings = settings or PruneSettings()
    to = settings.direction
    ranked = heads.ranked("context" if to == "memory" else "memory") if ranked is None else list(ranked)
    grid = sorted({k for k in settings.grid if 1 <= k <= len(ranked)})
    if not grid:
        raise ConfigError(
            f"{len(ranked)} heads point away from {to}, fewer than any K of {list(settings.grid)}.", "Use a smaller K."
        )
    means = _means(lm, items.split("discovery").items, ranked[: grid[-1]]) if settings.ablation == "mean" else None
    lowest = min(layer for layer, _ in ranked[: grid[-1]])
    validation, prose = Bench(lm, items.split("validation"), lowest), Prose(lm, lowest)
    rows = []
    for i, k in enumerate(grid):
        on_step(StepInfo("choosing K on validation subjects", i, len(grid), "values of K", f"K = {k}"))
        rows.append(_row(validation, prose, tuple(ranked[:k]), means, settings))
    on_step(StepInfo("choosing K on validation subjects", len(grid), len(grid), "values of K"))
    best = _choose(rows)
    safe = _choose([row for row in rows if row.safe]) if any(row.safe for row in rows) else None
    return _test(lm, items, heads, prose, rows, best, safe, means, settings, on_step)


def _row(
    bench: Bench, prose: Prose, chosen: tuple[Head, ...], means: dict[Head, Tensor] | None, settings: PruneSettings
) -> KRow:
    gains = HeadGains.pruning(chosen, means)
    answers = bench.answers(gains)
    recall, perplexity = bench.recall(gains), prose.cost(gains)["perplexity"]
    hit, log_p = (
        (answers.is_memory, answers.memory) if settings.direction == "memory" else (answers.is_context, answers.context)
    )
    return KRow(
        len(chosen),
        chosen,
        rates(f"K={len(chosen)}", answers),
        float(by_subject(hit.astype(float), answers.subjects).mean()),
        float(by_subject(log_p, answers.subjects).mean()),
        recall,
        perplexity,
        recall >= settings.min_recall and perplexity <= settings.max_perplexity,
    )


def _choose(rows: Sequence[KRow]) -> KRow:
    return max(rows, key=lambda row: (row.target, row.log_p, -row.k))


def _test(
    lm: LM,
    items: Items,
    heads: HeadMap,
    prose: Prose,
    rows: Sequence[KRow],
    best: KRow,
    safe: KRow | None,
    means: dict[Head, Tensor] | None,
    settings: PruneSettings,
    on_step: OnStep,
) -> Pruning:
    to = settings.direction
    test = items.split("test")
    sets = random_sets(best.heads, heads.mean.shape[1], settings.controls, settings.seed)
    wrong = heads.ranked(to)[: best.k]
    looking = attention_ranked(lm, items.split("discovery").items)[: best.k] if settings.controls else []
    others = [h for group in (*sets, wrong, looking) for h in group]
    bench = Bench(lm, test, min(layer for layer, _ in (*best.heads, *others)))
    tested, change, costs = [], {}, {}
    for row in {row.k: row for row in (best, *([safe] if safe else []))}.values():
        gains = HeadGains.pruning(row.heads, means)
        answers = bench.answers(gains)
        tested.append(rates(f"K={row.k}", answers))
        agreeing = Prompts(lm, [lm.tokens(item.agreeing)[0] for item in test.items])
        tested.append(rates(f"agreeing, K={row.k}", judged(agreeing.every(gains), test)))
        change[row.k] = moved(bench.base, answers, to)
        costs[row.k] = {"recall": bench.recall(gains), **prose.cost(gains)}
    base_share = _share(bench.base, to)
    kinds = {"random heads of the same layers": sets, "heads of the wrong sign": [wrong], "by attention": [looking]}
    total, done = sum(len(s) for s in kinds.values()), 0
    controls = []
    for name, group in kinds.items():
        found = []
        for chosen in group:
            on_step(StepInfo("controls on test subjects", done, total, "head sets", name))
            done += 1
            if chosen:
                found.append(_share(bench.answers(HeadGains.pruning(chosen)), to) - base_share)
        if found:
            controls.append(Control(name, tuple(found)))
    on_step(StepInfo("controls on test subjects", total, total, "head sets"))
    return Pruning(
        settings,
        tuple(rows),
        safe,
        best,
        rates("unpruned", bench.base),
        rates("closed-book", bench.base_closed),
        tuple(tested),
        change,
        costs,
        tuple(controls),
        len(test),
        items.relation,
        items.settings.format,
        lm.name,
    )


def _share(answers: Answers, to: Direction) -> float:
    hit = answers.is_memory if to == "memory" else answers.is_context
    return float(by_subject(hit.astype(float), answers.subjects).mean())


def random_sets(heads: Sequence[Head], n_heads: int, n: int, seed: int) -> list[list[Head]]:
    """Sets with as many heads in every layer, of heads that are not in `heads` while there are any."""
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        chosen: list[Head] = []
        for layer in sorted({layer for layer, _ in heads}):
            here = [head for at, head in heads if at == layer]
            rest = [head for head in range(n_heads) if head not in here]
            picked = rng.sample(rest, min(len(here), len(rest)))
            picked += rng.sample(here, len(here) - len(picked))
            chosen += [(layer, head) for head in picked]
        out.append(chosen)
    return out


def attention_ranked(lm: LM, items: Sequence[Item]) -> list[Head]:
    """Heads by how much the last position looks at the context's answer, most first."""
    mass = np.zeros((lm.adapter.n_layers, lm.adapter.n_heads))
    for start in range(0, len(items), 16):
        chunk = items[start : start + 16]
        batch = pad_rows([item.ids for item in chunk], device=lm.device)
        with lm.session() as s, torch.no_grad():
            s.capture("pattern")
            kept = s.run(batch, read=None).captured
        for i, item in enumerate(chunk):
            first, stop = (batch.column(i, t) for t in item.spans["obj_ctx"])
            for layer in range(lm.adapter.n_layers):
                mass[layer] += kept["pattern", layer][i, :, -1, first:stop].sum(-1).double().cpu().numpy()
    order = np.argsort(-mass.ravel(), kind="stable")
    return [divmod(int(i), mass.shape[1]) for i in order]


def _means(lm: LM, items: Sequence[Item], heads: Sequence[Head]) -> dict[Head, Tensor]:
    """(e,) mean output of heads over all tokens of the items' prompts."""
    layers = sorted({layer for layer, _ in heads})
    sums: dict[int, Tensor] = {}
    count = 0
    for _, batch in Prompts(lm, [item.ids for item in items]).batches:
        with lm.session() as s, torch.no_grad():
            s.capture("z", layers)
            kept = s.run(batch, read=None).captured
        real = batch.mask.bool()
        count += int(real.sum())
        for layer in layers:
            sums[layer] = sums.get(layer, torch.zeros(())) + kept["z", layer][real].double().sum(0)
    return {(layer, head): (sums[layer][head] / count).float() for layer, head in heads}
