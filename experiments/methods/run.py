"""Methods by batch size on CounterFact: efficacy, paraphrase, neighbourhood, S, drift and perplexity.

    python experiments/methods/run.py FACTS.json                       # every method, batch sizes 1, 16, 64, 256
    python experiments/methods/run.py FACTS.json --methods memit --sizes 64

Facts whose true answer the unedited model prefers are edited, in the order of the file. A batch size splits the same
facts into that many edits of a copy of the model each ("single" over batches): for every batch the model starts from
the base. Results are added to results.csv as they come, and cells that are there are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from editlab import LM
from editlab.data.formats import load_facts
from editlab.errors import EditlabError
from editlab.evaluation.scorer import force

METHODS = ("memit", "emmet", "alphaedit", "memit-seq", "ft", "lora")
METRICS = (
    "efficacy", "efficacy_argmax", "paraphrase", "neighbourhood", "score", "efficacy_said", "control_kl", "perplexity",
    "norm_ratio",
)  # fmt: skip
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--limit", type=int, default=64, help="facts in all for sizes up to it")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the methods")
    options = parser.parse_args()
    from editlab.config import parse_overrides

    settings = parse_overrides(options.set)
    lm = LM.from_pretrained(options.model)
    facts = preferred(lm, load_facts(options.facts))
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for size in options.sizes:
        chosen = facts[: max(options.limit, size)]
        for method in options.methods:
            key = {"model": lm.name, "method": method, "batch": size, "settings": str(settings), "n": len(chosen)}
            if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            print(key, flush=True)
            rows = cell(lm, chosen, method, size, settings)
            done = pd.concat([done, pd.DataFrame([key | row for row in rows])])
            done.to_csv(options.out, index=False)
            print(pd.DataFrame(rows).to_string(index=False), flush=True)


def preferred(lm: LM, facts: list) -> list:
    """Facts with a true target that the model finds more probable than the new one, one a subject."""
    facts = list({f.subject: f for f in facts if f.target_true}.values())
    new = force(lm, [(f.text, f.target_new) for f in facts])
    true = force(lm, [(f.text, f.target_true) for f in facts])
    return [f for f, a, b in zip(facts, new, true, strict=True) if b.nll < a.nll]


def cell(lm: LM, facts: list, method: str, size: int, settings: dict) -> list[dict]:
    """Rows of one method and batch size: per metric the mean over batches of the facts' values."""
    found, seconds, failed = [], 0.0, 0
    chunks = [facts[i : i + size] for i in range(0, len(facts), size)]
    for chunk in chunks:
        twin = lm.fork()
        started = time.perf_counter()
        try:
            twin.edit(chunk, method, **settings)
        except EditlabError as error:
            print(f"  {error}", flush=True)
            failed += len(chunk)
            continue
        seconds += time.perf_counter() - started
        found.append((len(chunk), twin.evaluate(chunk, metrics=METRICS)))
    rows = []
    for metric in METRICS:
        lines = [(n, e[metric]) for n, e in found if metric in {line.metric for line in e.lines}]
        if not lines:
            continue
        weights = [n for n, _ in lines]
        one = lines[0][1].edited if len(lines) == 1 else None
        rows.append(
            {
                "metric": metric,
                "base": np.average([line.base.mean for _, line in lines], weights=weights),
                "edited": np.average([line.edited.mean for _, line in lines], weights=weights),
                "low": one.low if one else np.nan,
                "high": one.high if one else np.nan,
                "seconds": seconds,
                "failed": failed,
            }
        )
    return rows


if __name__ == "__main__":
    main()
