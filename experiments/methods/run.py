"""Methods by batch size on CounterFact: efficacy, paraphrase, neighbourhood, S, drift and perplexity.

    python experiments/methods/run.py FACTS.json...                       # every method, batch sizes 1, 16, 64, 256
    python experiments/methods/run.py FACTS.json... --methods memit --sizes 64 --set memit.layers=[5]
    python experiments/methods/run.py --report --update-results        # table and figure from results.csv

Rows go to runs/experiments/methods/results.csv, with --update-results to the one beside this script.

The facts are those of the file, in its order, whose true answer the unedited model finds more probable than the new
one, one a subject. A batch size splits them into edits of that many, each made on the unedited model and scored right
after, so a row is about batches of that size and not about a sequence. Values of facts are pooled over batches; drift,
perplexity and norm are means over (some of the) edited models. Cells that results.csv has are not computed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report import METHODS, write

from editlab import LM, Fact
from editlab.config import parse_overrides
from editlab.errors import EditlabError
from editlab.evaluation.known import preferred
from editlab.evaluation.metrics.counterfact import harmonic
from editlab.evaluation.statistics import Estimate, estimate, estimate_joint

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, read_facts, results_folder

OF_FACTS = (
    "efficacy", "paraphrase", "neighbourhood", "efficacy_argmax", "paraphrase_argmax", "neighbourhood_argmax",
    "efficacy_said",
)  # fmt: skip
OF_MODEL = ("control_kl", "perplexity", "norm_ratio")
MODELS_SCORED = 4  # edited models of a cell whose drift and perplexity are measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--limit", type=int, default=64, help="facts in all, for sizes up to that")
    parser.add_argument("--out", type=Path, help="default results.csv in the folder of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="METHOD.NAME=VALUE", help="settings of the methods")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="write the table and the figure, and nothing else")
    add_option(parser)
    options = parser.parse_args()
    out = options.out or results_folder(__file__, options.update_results) / "results.csv"
    if options.report:
        write(out)
        return
    if not options.facts:
        parser.error("name a facts file")
    if options.threads:
        torch.set_num_threads(options.threads)
    given = read_facts(parser, options.facts)
    lm = LM.from_pretrained(options.model)
    facts = preferred(lm, given)
    print(f"{len(facts)} facts that {lm.name} prefers the true answer of", flush=True)
    for size in options.sizes:
        chosen = facts[: max(options.limit, size)]
        for method in options.methods:
            if method == "rome" and size > 1:
                continue
            own = [item.split(".", 1)[1] for item in options.set if item.startswith(f"{method}.")]
            settings = parse_overrides(own)
            key = {"model": lm.name, "method": method, "batch": size, "settings": " ".join(own), "n": len(chosen)}
            done = pd.read_csv(out, keep_default_na=False) if out.exists() else pd.DataFrame()
            if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            rows = cell(lm, chosen, method, size, settings)
            table = pd.concat([done, pd.DataFrame([key | row for row in rows])])
            table.to_csv(out, index=False)
            print(key, flush=True)
            print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"), flush=True)


def cell(lm: LM, facts: list[Fact], method: str, size: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one method and batch size."""
    pooled: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # (metric, state): by fact, or by model
    seconds, failed = 0.0, 0
    chunks = [facts[i : i + size] for i in range(0, len(facts), size)]
    every = max(1, len(chunks) // MODELS_SCORED)
    for i, chunk in enumerate(chunks):
        twin = lm.fork()
        started = time.perf_counter()
        try:
            twin.edit(chunk, method, **settings)
        except EditlabError as error:
            print(f"  {method}, {size}: {error}", flush=True)
            failed += len(chunk)
            continue
        seconds += time.perf_counter() - started
        names = OF_FACTS + (OF_MODEL if i % every == 0 else ())
        found = twin.evaluate(chunk, metrics=names)
        for (metric, state), rows in found.items.groupby(["metric", "state"]):
            if metric in OF_FACTS:
                pooled[metric, state] |= dict(zip(rows["item"], rows["value"], strict=True))
        for line in found.lines:
            if line.metric in OF_MODEL:
                pooled[line.metric, "base"][str(i)] = line.base.mean
                pooled[line.metric, "edited"][str(i)] = line.edited.mean
    rows = [row(metric, pooled) for metric in (*OF_FACTS, *OF_MODEL) if (metric, "edited") in pooled]
    return [r | {"seconds": seconds, "failed": failed} for r in [*rows, *score(pooled)]]


Pooled = dict[tuple[str, str], dict[str, float]]


def row(metric: str, pooled: Pooled) -> dict[str, Any]:
    """The base's mean, and the edited model's with its interval."""
    base = float(np.mean(list(pooled[metric, "base"].values())))
    return {"metric": metric, "base": base} | _shown(estimate(list(pooled[metric, "edited"].values())))


def score(pooled: Pooled) -> list[dict[str, Any]]:
    """S, the harmonic mean of the three means."""
    parts = ("efficacy", "paraphrase", "neighbourhood")
    if any((part, "edited") not in pooled for part in parts):
        return []

    def joint(state: str) -> Estimate:
        names = list(pooled["efficacy", state])
        columns = [[pooled[part, state].get(name, np.nan) for name in names] for part in parts]
        return estimate_joint(columns, harmonic)

    return [{"metric": "score", "base": joint("base").mean} | _shown(joint("edited"))]


def _shown(found: Estimate) -> dict[str, Any]:
    return {"edited": found.mean, "low": found.low, "high": found.high, "items": found.n}


if __name__ == "__main__":
    main()
