"""Memory against context, for one model: who wins, which heads decide, what pruning and its rivals do, and edits.

    python experiments/conflicts/run.py                         # the default model
    python experiments/conflicts/run.py --model factworld-gpt2 --relation language --subjects 40
    python experiments/conflicts/run.py --steps probe heads     # some steps only

Each step writes one CSV into runs/experiments/conflicts/results (with --update-results: into results/ beside this
script) when it has ended and is skipped where that is there, so a killed run goes on. `report.py` makes results.md of
them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from editlab import LM
from editlab.data.conflicts import FORMATS, cases_of_relation
from editlab.probes.conflicts.behaviour import probe
from editlab.probes.conflicts.heads import HeadMap, map_heads
from editlab.probes.conflicts.items import Items, ItemSettings, build_items
from editlab.probes.conflicts.levers import compare
from editlab.probes.conflicts.prune import PruneSettings, prune
from editlab.probes.conflicts.prune_results import Pruning
from editlab.probes.conflicts.transfer import transfer_of
from editlab.progress import StepInfo
from editlab.runs.edited_conflicts import edited_conflicts
from editlab.state.files import write_text

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, results_folder

RELATION = "capital"
DIRECTIONS = ("context", "memory")
EDITS = ("rome", "memit", "wise")


class Study:
    """One model's items and head map, made when they are first needed."""

    def __init__(
        self, model: str | None, relation: str, subjects: int | None, controls: int, facts: int, results: Path
    ) -> None:
        self.results = results
        self.lm = LM.from_pretrained(model)
        self.relation, self.subjects, self.controls, self.facts = relation, subjects, controls, facts
        self.cases = cases_of_relation(relation)
        self._items: dict[str, Items] = {}
        self._heads: dict[str, HeadMap] = {}
        self.prunings: dict[str, Pruning] = {}

    def path(self, step: str) -> Path:
        """The table of a step; what is not as usual stands in its name."""
        relation = [self.relation] if self.relation != RELATION else []
        subjects = [f"{self.subjects}-subjects"] if self.subjects is not None else []
        return self.results / ("-".join([self.lm.name, *relation, *subjects, step]) + ".csv")

    def items(self, format: str = "substitution") -> Items:
        if format not in self._items:
            settings = ItemSettings(format=format, subjects=self.subjects)
            self._items[format] = build_items(self.lm, self.cases, settings)
        return self._items[format]

    def heads(self, format: str = "substitution") -> HeadMap:
        if format not in self._heads:
            self._heads[format] = map_heads(self.lm, self.items(format).split("discovery"), on_step=said)
        return self._heads[format]

    def pruning(self, direction: str) -> Pruning:
        if direction not in self.prunings:
            settings = PruneSettings(direction=direction, controls=self.controls)
            self.prunings[direction] = prune(self.lm, self.items(), self.heads(), settings, on_step=said)
        return self.prunings[direction]


_TOLD = [0.0]


def said(step: StepInfo) -> None:
    """A line every twenty seconds."""
    if time.monotonic() - _TOLD[0] > 20:
        _TOLD[0] = time.monotonic()
        print(f"    {step.task}: {step.done} of {step.total} {step.unit} {step.note}", flush=True)


def step_probe(study: Study) -> pd.DataFrame:
    """Rates under every format."""
    found = probe(study.lm, study.cases, ItemSettings(subjects=study.subjects), formats=FORMATS, on_step=said)
    print("   ", found.headline, found.popularity)
    return found.to_pandas().assign(popularity_r=found.popularity.r if found.popularity else None)


def step_heads(study: Study) -> pd.DataFrame:
    """Every head's scores under substitution, and beside them S_both under coherent paragraphs: who changes sides?"""
    found = study.heads()
    print("   ", found.headline)
    table = found.to_pandas()
    coherent = study.heads("paragraph").to_pandas().set_index("head")["score"]
    table["S_both_paragraph"] = coherent.reindex(table["head"]).to_numpy()
    exact, rough = table["S_both"], table["gradient"]
    return table.assign(split_half_r=found.reliability, r_gradient=exact.corr(rough), subjects=found.n_subjects)


def step_prune(study: Study) -> pd.DataFrame:
    """Test rates in both directions, with controls; every K on validation subjects."""
    out = []
    for direction in DIRECTIONS:
        found = study.pruning(direction)
        print("   ", found.headline)
        test = found.to_pandas().assign(split="test")
        for k, change in found.change.items():
            row = test["condition"] == f"K={k}"
            test.loc[row, ["rise", "rise_low", "rise_high"]] = [
                change.difference.mean,
                change.difference.low,
                change.difference.high,
            ]
            for name, value in found.costs[k].items():
                test.loc[row, name] = value
        rows = found.validation().assign(split="validation", condition=lambda t: "K=" + t["k"].astype(str))
        out.append(
            pd.concat([test, rows], ignore_index=True).assign(
                direction=direction, best=found.best.k, safe_k=found.safe.k if found.safe else None
            )
        )
    return pd.concat(out, ignore_index=True)


def step_transfer(study: Study) -> pd.DataFrame:
    """The chosen heads in other relations and formats."""
    places = [*("language", "currency", "continent", "nationality"), *[f for f in FORMATS if f != "irrelevant"]]
    out = []
    for direction in DIRECTIONS:
        heads, settings = study.pruning(direction).best.heads, study.items().settings
        others = [place for place in places if place != study.relation]
        found = transfer_of(study.lm, heads, direction, settings, others, study.relation, said)
        out.append(found.to_pandas().assign(direction=direction))
        for where, why in found.left_out:
            print(f"    {where} left out: {why}")
    return pd.concat(out, ignore_index=True)


def step_levers(study: Study) -> pd.DataFrame:
    """Every lever in both directions."""
    out = []
    for direction in DIRECTIONS:
        settings = PruneSettings(controls=0)
        found = compare(study.lm, study.items(), study.heads(), direction, settings=settings, on_step=said)
        print("   ", found.headline)
        out.append(found.to_pandas().assign(direction=direction))
    return pd.concat(out, ignore_index=True)


def step_edits(study: Study) -> pd.DataFrame:
    """Conflicts before and after edits."""
    out = []
    for method in EDITS:
        found = edited_conflicts(study.lm, study.items().split("discovery"), method, facts=study.facts, on_step=said)
        print("   ", found.headline)
        routed = json.dumps(found.shielded) if found.shielded else ""
        out.append(
            found.to_pandas().assign(method=method, agreement=found.agreement, shielded=routed, facts=found.facts)
        )
    return pd.concat(out, ignore_index=True)


STEPS: dict[str, Callable[[Study], pd.DataFrame]] = {
    "probe": step_probe,
    "heads": step_heads,
    "prune": step_prune,
    "levers": step_levers,
    "edits": step_edits,
    "transfer": step_transfer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--relation", default=RELATION)
    parser.add_argument("--subjects", type=int, help="at most so many known subjects")
    parser.add_argument("--controls", type=int, default=20, help="random head sets")
    parser.add_argument("--facts", type=int, default=10, help="edited facts per method")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--threads", type=int)
    add_option(parser)
    options = parser.parse_args()
    results = results_folder(__file__, options.update_results) / "results"
    results.mkdir(exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    study = Study(options.model, options.relation, options.subjects, options.controls, options.facts, results)
    print(study.items().headline, flush=True)
    for name in options.steps:
        path = study.path(name)
        if path.exists():
            print(f"{name}: there already", flush=True)
            continue
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        table = STEPS[name](study).assign(model=study.lm.name, relation=study.relation)
        write_text(path, table.to_csv(index=False, float_format="%.6g"))
        print(f"{name}: {time.monotonic() - began:.0f} s, {path.name}", flush=True)


if __name__ == "__main__":
    main()
