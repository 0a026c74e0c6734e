"""The sweep behind the preset of `wise`: settings by reliability, generalization and locality after a few edits.

    python experiments/lifelong/sweep.py FACTS.json --far ZSRE.json --edits 16 --set layer=23 lr=0.01   # one point
    python experiments/lifelong/sweep.py --model factworld-llama --set layer=1   # facts of the relations that it knows

Edits are made one after the other and all scored at the end; the point becomes a line of sweep.csv. Besides the shares
of answers there are the shares of prompts that are routed to the side memory: of edits, paraphrases, neighbours, other
facts of the file, and questions about anything else, with and without the prefix that they were published with.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from run import elsewhere, from_relations, measured

from editlab import LM
from editlab.config import parse_overrides
from editlab.evaluation.known import preferred

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, read_facts, results_folder

SCORES = {
    "rewrite_acc": "reliability",
    "rephrase_acc": "generalization",
    "locality, published": "locality",
    "locality, stripped": "prefix stripped",
    "neighbourhood_same": "near neighbours",
    "efficacy_said": "said",
    "paraphrase_said": "said on paraphrases",
    "perplexity": "perplexity",
}
ASKED = 50  # other facts, and questions about anything else


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, nargs="?")
    parser.add_argument("--far", type=Path, help="zsRE records, for their locality questions")
    parser.add_argument("--model")
    parser.add_argument("--records", type=int, nargs=2, default=(150, 300), help="of the file: from, to")
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--sample", type=int, default=50, help="facts that are scored")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="default sweep.csv in the folder of the results")
    parser.add_argument("--threads", type=int, default=0)
    add_option(parser)
    options = parser.parse_args()
    out = options.out or results_folder(__file__, options.update_results) / "sweep.csv"
    if options.threads:
        torch.set_num_threads(options.threads)
    given = read_facts(parser, [options.facts])
    published = read_facts(parser, [options.far])
    lm = LM.from_pretrained(options.model)
    start, stop = options.records
    stop = min(stop, start + 2 * options.edits + ASKED)
    facts = preferred(lm, given[start:stop]) if options.facts else from_relations(lm)[start:stop]
    chosen, others = facts[: options.edits], facts[options.edits :][-ASKED:]
    far = elsewhere(published, others)
    began = time.perf_counter()
    for i, fact in enumerate(chosen):
        entry = lm.edit(fact, "wise", **parse_overrides(options.set))
        print(i, fact.subject, entry.edit.info["steps"], entry.edit.info["target_nll"], flush=True)
    seconds = (time.perf_counter() - began) / len(chosen)
    prompts = {
        "edits": [f.text for f in chosen],
        "paraphrases": [text for f in chosen for text in f.paraphrases],
        "neighbours": [q.prompt for f in chosen for q in f.neighbours],
        "other facts": [f.text for f in others],
        **{name: [q.prompt for q in asked[:ASKED]] for name, asked in far.items()},
    }
    routed = {}
    for name, of in prompts.items():
        table = lm.route(of).to_pandas()
        routed[f"routed: {name}"] = (table["answers"] != "model").mean()
        print(name, table["margin"].describe(percentiles=[0.05, 0.25, 0.75, 0.95]).round(2).to_dict(), flush=True)
    found = measured(lm, chosen, far, options.sample)
    row = {"model": lm.name, "edits": len(chosen), "records": f"{start} to {stop}", "settings": " ".join(options.set)}
    row |= {shown: found[metric].edited.mean for metric, shown in SCORES.items() if metric in found} | routed
    row["mean"] = (row["reliability"] + row["generalization"] + row["locality"]) / 3
    row["steps"] = sum(sum(e.edit.info["steps"]) for e in lm.ledger.active) / len(chosen)
    row["seconds"] = seconds
    done = pd.read_csv(out) if out.exists() else pd.DataFrame()
    pd.concat([done, pd.DataFrame([row])]).to_csv(out, index=False)
    print(pd.Series(row).to_string(), flush=True)


if __name__ == "__main__":
    main()
