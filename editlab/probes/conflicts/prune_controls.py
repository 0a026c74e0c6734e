"""Sets of heads that should not turn the balance, against which a pruning has to be held."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editlab.hooks.batch import pad_rows
from editlab.hooks.heads import Head, HeadGains
from editlab.probes.conflicts.heads import HeadMap
from editlab.probes.conflicts.items import Item, Items
from editlab.probes.conflicts.prune_costs import Bench, share
from editlab.probes.conflicts.prune_results import RANDOM, Control
from editlab.progress import OnStep, StepInfo

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.conflicts.prune import PruneSettings


def control_sets(
    lm: LM, items: Items, heads: HeadMap, best: Sequence[Head], settings: PruneSettings
) -> dict[str, list[list[Head]]]:
    """As many heads as `best` has, by what they were taken for: chance, the wrong sign, attention to the answer."""
    looking = attention_ranked(lm, items.split("discovery").items)[: len(best)] if settings.controls else []
    return {
        RANDOM: random_sets(best, heads.mean.shape[1], settings.controls, settings.seed),
        "heads of the wrong sign": [heads.ranked(settings.direction)[: len(best)]],
        "by attention": [looking],
    }


def measure(
    bench: Bench,
    sets: Mapping[str, Sequence[Sequence[Head]]],
    means: dict[Head, Tensor] | None,
    settings: PruneSettings,
    on_step: OnStep,
) -> tuple[Control, ...]:
    """By how much each set lets the target's share rise; kinds without a head are left out.

    Args:
        means: what stands in for each head, as for those that are judged.
    """
    base = share(bench.base, settings.direction)
    total, done = sum(len(group) for group in sets.values()), 0
    found = []
    for name, group in sets.items():
        rises = []
        for chosen in group:
            on_step(StepInfo("controls on test subjects", done, total, "head sets", name))
            done += 1
            if chosen:
                rises.append(share(bench.answers(HeadGains.pruning(chosen, means)), settings.direction) - base)
        if rises:
            found.append(Control(name, tuple(rises)))
    on_step(StepInfo("controls on test subjects", total, total, "head sets"))
    return tuple(found)


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
                mass[layer] += kept["pattern", layer][i, :, -1, first:stop].sum(-1).cpu().double().numpy()
    order = np.argsort(-mass.ravel(), kind="stable")
    return [divmod(int(i), mass.shape[1]) for i in order]
