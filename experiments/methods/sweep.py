"""The sweeps behind the presets of the models that are tuned here.

    python experiments/methods/sweep.py factworld-llama                  # capitals that the model knows, all methods
    python experiments/methods/sweep.py smollm2-135m --facts FACTS.json --methods memit

Each method writes all facts in one edit (ROME and its kin one by one), for every point of a small grid, as `editlab
tune` does. A line a point, best first, in sweeps/MODEL-METHOD.csv of runs/experiments/methods (with --update-results:
of this folder); the point that presets.yaml has is the best one that is not worse in neighbours by more than it gains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from editlab import LM, Fact
from editlab.data.relations import fill, relation
from editlab.evaluation.known import known, preferred
from editlab.progress import StepInfo
from editlab.runs.tune import tune

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, read_facts, results_folder

Grid = dict[str, Sequence[Any]]
# The optimiser's settings of the fact worlds are those that ROME's preset has.
FACTWORLD: dict[str, Grid] = {
    "memit": {"layers": [[0], [0, 1]], "lambda_rel": [0.1, 0.3], "clamp": [0.5, 0.7, 1.0]},
    "emmet": {"layer": [0], "clamp": [0.5, 0.7, 1.0]},
    "alphaedit": {"layers": [[0], [0, 1]], "tau_rel": [1e-3, 1e-2], "clamp": [0.5, 0.7, 1.0]},
}
OPTIMISER: dict[str, Grid] = {
    "factworld-llama": {"lr": [3.0], "steps": [40]},
    "factworld-gpt2": {"lr": [1.0], "steps": [40]},
}
SMOLLM2: dict[str, Grid] = {
    "memit": {"layers": [[5], [7], [3, 5, 7]], "lambda_rel": [0.3, 1.0]},
    "emmet": {"layer": [5, 7]},
    "alphaedit": {"layers": [[3, 5, 7], [7]], "tau_rel": [3e-4, 1e-3]},
    "ultraedit": {"layers": [None, [22, 25, 28]], "eta": [1e-6, 3e-4, 1e-3]},
    "ft": {"layer": [0, 5], "norm_constraint": [5e-4, 4e-3]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, help="default: capitals that the model knows")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--threads", type=int, default=0)
    add_option(parser)
    options = parser.parse_args()
    given = read_facts(parser, [options.facts]) if options.facts else None
    if options.threads:
        torch.set_num_threads(options.threads)
    lm = LM.from_pretrained(options.model)
    grids = FACTWORLD if options.model.startswith("factworld") else SMOLLM2
    facts = chosen(lm, given)[: options.n]
    print(f"{len(facts)} facts", flush=True)
    for method in options.methods or list(grids):
        table = tune(lm, facts, method, grids[method] | OPTIMISER.get(options.model, {}), _say, batch=True)
        target = results_folder(__file__, options.update_results) / "sweeps" / f"{lm.name}-{method}.csv"
        target.parent.mkdir(exist_ok=True)
        table.to_csv(target, index=False)
        print(f"{target.name}\n{table.to_string()}", flush=True)


def chosen(lm: LM, given: list[Fact] | None) -> list[Fact]:
    """Facts that the model has something to unlearn of."""
    if given is not None:
        return preferred(lm, given)
    stem = relation("capital").stems[0]
    facts = known(lm, relation("capital")).facts()
    others = [fill(stem, fact.subject) for fact in facts]
    # Every capital has one country, so the neighbours are other countries: their answers must stay.
    return [
        fact.model_copy(update={"neighbours": tuple(others[(i + k) % len(facts)] for k in (40, 60, 80))})
        for i, fact in enumerate(facts)
    ]


def _say(step: StepInfo) -> None:
    if step.task == "tuning":
        print(f"  {step.done} of {step.total}: {step.note}", flush=True)


if __name__ == "__main__":
    main()
