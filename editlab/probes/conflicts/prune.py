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

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from editlab.config import MethodConfig
from editlab.errors import ConfigError
from editlab.hooks.heads import Head, HeadGains
from editlab.hooks.placement import in_float64
from editlab.probes.conflicts.heads import Direction, HeadMap
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.prune_controls import control_sets, measure
from editlab.probes.conflicts.prune_costs import Bench, Prose
from editlab.probes.conflicts.prune_results import KRow, Pruning
from editlab.probes.conflicts.rates import by_subject, moved, rates
from editlab.probes.conflicts.readout import Prompts, judged
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM

GRID = (1, 3, 5, 7, 9, 15)


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
    means = means_of(lm, items, ranked[: grid[-1]], settings)
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
    test = items.split("test")
    sets = control_sets(lm, items, heads, best.heads, settings)
    others = [head for group in sets.values() for chosen in group for head in chosen]
    for_controls = means_of(lm, items, others, settings)
    bench = Bench(lm, test, min(layer for layer, _ in (*best.heads, *others)))
    tested, change, costs = [], {}, {}
    for row in {row.k: row for row in (best, *([safe] if safe else []))}.values():
        gains = HeadGains.pruning(row.heads, means)
        answers = bench.answers(gains)
        tested.append(rates(f"K={row.k}", answers))
        agreeing = Prompts(lm, [lm.tokens(item.agreeing)[0] for item in test.items])
        tested.append(rates(f"agreeing, K={row.k}", judged(agreeing.every(gains), test)))
        change[row.k] = moved(bench.base, answers, settings.direction)
        costs[row.k] = {"recall": bench.recall(gains), **prose.cost(gains)}
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
        measure(bench, sets, for_controls, settings, on_step),
        len(test),
        items.relation,
        items.settings.format,
        lm.name,
    )


def means_of(lm: LM, items: Items, heads: Sequence[Head], settings: PruneSettings) -> dict[Head, Tensor] | None:
    """What stands in for pruned heads: (e,) means of their outputs on discovery subjects; None where zero does."""
    return _means(lm, items.split("discovery").items, heads) if settings.ablation == "mean" and heads else None


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
            sums[layer] = sums.get(layer, torch.zeros(())) + in_float64(kept["z", layer][real]).sum(0)
    return {(layer, head): (sums[layer][head] / count).float() for layer, head in heads}
