"""What jobs of the Conflicts page do: ask and score heads; prune and measure. No streamlit here, as in `work`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editlab.data.conflicts import Case
from editlab.hooks.heads import Head, head_name
from editlab.lm import LM
from editlab.probes.conflicts.behaviour import Behaviour, probe
from editlab.probes.conflicts.heads import HeadMap, map_heads
from editlab.probes.conflicts.items import ItemSettings
from editlab.probes.conflicts.prune import GRID, PruneSettings, prune
from editlab.probes.conflicts.prune_results import Pruning
from editlab.progress import OnStep
from editlab.runs import run_folder, write_table

from .work import Ran


@dataclass(frozen=True)
class Analysis:
    """Who wins, and which heads decide; `parent` is the hash of the state that was asked."""

    behaviour: Behaviour
    heads: HeadMap
    parent: str


def analyse(lm: LM, cases: Sequence[Case], settings: ItemSettings, root: Path) -> Callable[[OnStep], Ran]:
    """Ask conflicts and score every head, into a run folder."""
    twin, parent = lm.fork(), lm.state_hash

    def work(on_step: OnStep) -> Ran:
        behaviour = probe(twin, cases, settings, on_step=on_step)
        heads = map_heads(twin, behaviour.items.split("discovery"), on_step=on_step)
        said = {"headline": f"{behaviour.headline} {heads.headline}", "rejected": behaviour.items.rejected}
        asked = {"relation": behaviour.items.relation, **settings.model_dump(mode="json")}
        folder = run_folder("conflicts", twin.base_hash, root)
        plots = {"shares": behaviour.plot, "heads": heads.plot}
        write_table(folder, twin, "conflicts", asked, behaviour.to_pandas(), said, plots)
        return Ran(folder, Analysis(behaviour, heads, parent))

    return work


def measure(
    lm: LM, found: Analysis, direction: str, heads: Sequence[Head], root: Path, *, controls: int = 10
) -> Callable[[OnStep], Ran]:
    """Prune these heads, one after the other, and measure it on held-out items, into a run folder."""
    twin, n = lm.fork(), len(heads)
    grid = tuple(sorted({k for k in GRID if k < n} | {n}))
    seed = found.behaviour.items.settings.seed
    settings = PruneSettings(direction=direction, grid=grid, controls=controls, seed=seed)  # type: ignore[arg-type]

    def work(on_step: OnStep) -> Ran:
        pruning: Pruning = prune(twin, found.behaviour.items, found.heads, settings, ranked=heads, on_step=on_step)
        said: dict[str, Any] = {"headline": pruning.headline, "heads": [head_name(head) for head in heads]}
        items = found.behaviour.items
        asked = {"relation": items.relation, **items.settings.model_dump(mode="json")}
        asked |= settings.model_dump(mode="json")
        folder = run_folder("conflicts", twin.base_hash, root)
        write_table(folder, twin, "conflicts", asked, pruning.to_pandas(), said, {"pruning": pruning.plot})
        return Ran(folder, pruning)

    return work
