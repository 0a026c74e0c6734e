"""One edit after the other, all kept: where does each method break?

    python experiments/lifelong/run.py FACTS.json... --edits 200 --far ZSRE.json   # every setting, the default model
    python experiments/lifelong/run.py --model factworld-llama --edits 300   # facts of the relations that it knows
    python experiments/lifelong/run.py FACTS.json... --only alphaedit
    python experiments/lifelong/run.py --report --update-results          # table and figure from results.csv

Rows go to runs/experiments/lifelong/results.csv, with --update-results to the one beside this script.

The facts are those of the files, in their order, whose true answer the unedited model finds more probable than the
new one, one a subject; without a file, counterfactuals of what the model knows of the relations, shuffled. Each
setting is a run that can be killed and gone on with (runs/lifelong/MODEL/NAME-N-FACTS). When all edits are made they
are put back one by one on the unedited model, and after 1, 10, 30, 100, ... of them at most `--sample` of the facts
written so far, evenly spread over the sequence, are scored, with drift, perplexity and norms of the model. Locality
is asked three times: of the published prompts (zsRE's, `--far`; without it, of other facts that the model knows), of
the same without the prefix that all of them have and no edit has ("nq question: "), and of the facts' own neighbours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from editlab import LM, Fact
from editlab.data.relations import relations
from editlab.evaluation.known import known, preferred
from editlab.facts import Question
from editlab.runs import Plan, is_finished, run_batch
from editlab.runs.journal import Journal

sys.path.append(str(Path(__file__).parents[1]))
from shared import add_option, read_facts, results_folder

# Two contexts instead of five: half the time of an optimised value, and two hundred of them add up.
TWO: dict[str, Any] = {"contexts": {10: 2}}
ANCHOR: dict[str, Any] = {"value_norm_anchor": True}
# As published but for Adam: a late layer, single entries, plain steps, the mean over tokens, one merged bank.
PLAIN: dict[str, Any] = {
    "mask": "entries", "whiten": False, "pooling": "mean", "indicator": "relative", "ratio": 0.8,
    "mode": "merge", "shard_size": 50, "merge_every": 2, "steps": 40, "lr": 0.01, "contexts": {5: 3, 10: 3},
    "prose": 0, "left_out": 0, "openings": 0, "rows": 1000, "near": 4, "replay": 2, "alpha": 0.15, "beta": 1.0,
    "gamma": 0.6, "margin_weight": 50.0, "stop_nll": 0.1, "stop_margin": 0.05,
}  # fmt: skip
# Name in the table: method, settings, facts of one edit.
SETTINGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "rome": ("rome", TWO, 1),
    "emmet": ("emmet", TWO, 1),
    "memit": ("memit", TWO, 1),
    "memit, 25 an edit": ("memit", TWO, 25),
    "memit-seq": ("memit-seq", TWO, 1),
    "memit-seq, norm anchor": ("memit-seq", TWO | ANCHOR, 1),
    "memit-seq, 25 an edit": ("memit-seq", TWO, 25),
    "alphaedit": ("alphaedit", TWO, 1),
    "alphaedit, norm anchor": ("alphaedit", TWO | ANCHOR, 1),
    "ft": ("ft", {}, 1),
    "grace": ("grace", {}, 1),
    "wise": ("wise", {}, 1),
    "wise, plain": ("wise", PLAIN, 1),
    "ultraedit": ("ultraedit", {}, 1),
}
METRICS = (
    "efficacy", "paraphrase", "neighbourhood", "score", "efficacy_argmax", "efficacy_said", "paraphrase_argmax",
    "paraphrase_said", "neighbourhood_same", "rewrite_acc", "rephrase_acc", "control_kl", "perplexity", "norm_ratio",
)  # fmt: skip
PREFIX = "nq question: "
MARKS = (1, 10, 30, 100, 200, 300, 1000)
LATE = 25 / 30  # of the layers; the published one of 27 in 32 is as far down


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--far", type=Path, help="zsRE records, for their locality questions")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--sample", type=int, default=50)
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS, help="edits after which the model is scored")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME")
    parser.add_argument("--out", type=Path, help="default results.csv in the folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/lifelong"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="write the table and the figure, and nothing else")
    add_option(parser)
    options = parser.parse_args()
    out = options.out or results_folder(__file__, options.update_results) / "results.csv"
    if options.report:
        from report import write

        write(out)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    given = read_facts(parser, options.facts)
    published = read_facts(parser, [options.far])
    base = LM.from_pretrained(options.model)
    chosen = preferred(base, given) if given else from_relations(base)
    facts, rest = chosen[: options.edits], chosen[options.edits :]
    far = elsewhere(published, rest)
    print(f"{len(facts)} facts that {base.name} answers otherwise", flush=True)
    for name in options.only:
        method, settings, size = settings_for(base, name)
        key = {"model": base.name, "setting": name, "n": len(facts)}
        done = pd.read_csv(out) if out.exists() else pd.DataFrame()
        if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        mode = "sequential" if size == 1 else "sequential-batched"
        plan = Plan(method=method, mode=mode, batch_size=size, settings=settings)
        lm = base.fork()
        folder = folder_of(options.runs / base.name, name, facts)
        if is_finished(folder):
            lm.load_edits(folder)
        else:
            run_batch(lm, facts, plan, folder)
        costs = costs_of(folder, plan, facts)
        rows = [key | costs | row for row in scores(lm, far, options.sample, options.marks)]
        # Another process may have added its own rows meanwhile.
        done = pd.read_csv(out) if out.exists() else pd.DataFrame()
        pd.concat([done, pd.DataFrame(rows)]).to_csv(out, index=False)
        shown = pd.DataFrame(rows).pivot_table(index="edits", columns="metric", values="edited")
        print(f"{name}: {costs}\n{shown.to_string(float_format=lambda x: f'{x:.3g}')}", flush=True)


def settings_for(lm: LM, name: str) -> tuple[str, dict[str, Any], int]:
    """Method, settings and facts of one edit, a layer that is named by its depth put in."""
    method, settings, size = SETTINGS[name]
    if settings is PLAIN:
        settings = PLAIN | {"layer": min(lm.adapter.n_layers - 1, round(LATE * lm.adapter.n_layers))}
    return method, settings, size


def folder_of(root: Path, name: str, facts: Sequence[Fact]) -> Path:
    """Where a setting is run on these facts: a run on others, or on fewer of them, is another run."""
    whole = json.dumps([fact.model_dump(mode="json") for fact in facts], sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return root / f"{name.replace(', ', '-').replace(' ', '-')}-{len(facts)}-{digest}"


def costs_of(folder: Path, plan: Plan, facts: Sequence[Fact]) -> dict[str, float]:
    """Facts that failed, and seconds and bytes a fact, of a finished run."""
    sizes = [len(chunk) for chunk in plan.chunks(facts)]
    ends = [event for event in Journal(folder).events if event["event"] in ("committed", "failed")]
    # The journal has the seconds of one fact of a chunk.
    seconds = sum(event.get("seconds", 0.0) * sizes[event["chunk"]] for event in ends)
    return {
        "failed": sum(sizes[event["chunk"]] for event in ends if event["event"] == "failed"),
        "seconds": seconds / len(facts),
        "bytes": sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / len(facts),
    }


def from_relations(lm: LM) -> list[Fact]:
    """Counterfactuals of everything that the model knows of every relation."""
    facts = [f for r in relations().values() for f in known(lm, r).facts(paraphrases=2, neighbours=3)]
    random.Random(0).shuffle(facts)
    return facts


def elsewhere(published: list[Fact], rest: list[Fact]) -> dict[str, list[Question]]:
    """Questions that no edit is about, by the name of their locality."""
    if not published:
        return {"published": [Question(prompt=f.text, answers=(f.target_true,)) for f in rest if f.target_true]}
    asked = [question for fact in published for question in fact.locality]
    bare = [q.model_copy(update={"prompt": q.prompt.removeprefix(PREFIX)}) for q in asked]
    return {"published": asked, "stripped": bare}


def scores(
    lm: LM, far: dict[str, list[Question]], sample: int, wanted: Sequence[int] = MARKS
) -> Iterator[dict[str, Any]]:
    """Rows by edits so far and metric."""
    entries = list(lm.ledger.active)
    twin = lm.fork()
    for entry in reversed(entries):
        twin.undo(entry.id)
    written: list[Fact] = []
    total = sum(len(entry.edit.requests) for entry in entries)
    marks = [m for m in wanted if m < total] + [total]
    for entry in entries:
        twin.redo(entry.id)
        before, now = len(written), len(written) + len(entry.edit.requests)
        written += [Fact.model_validate(request) for request in entry.edit.requests]
        if any(before < mark <= now for mark in marks):
            for metric, line in measured(twin, written, far, sample).items():
                e = line.edited
                yield {
                    "edits": now, "metric": metric, "base": line.base.mean, "edited": e.mean, "low": e.low,
                    "high": e.high, "items": e.n,
                }  # fmt: skip


def measured(lm: LM, written: list[Fact], far: dict[str, list[Question]], sample: int) -> dict[str, Any]:
    """The lines of the model as it is, on an even sample of the facts written and on questions about anything else."""
    places = np.unique(np.linspace(0, len(written) - 1, min(sample, len(written))).round().astype(int))
    found = {line.metric: line for line in lm.evaluate([written[i] for i in places], metrics=METRICS).lines}
    for name, questions in far.items():
        asked = [
            Fact(prompt="{} is", subject=f"Question {i}", target_new="so", locality=(question,))
            for i, question in enumerate(questions[: 2 * sample])
        ]
        scored = {line.metric: line for line in lm.evaluate(asked, metrics=["locality_acc"]).lines}
        found[f"locality, {name}"] = scored["locality_acc"]
    return found


if __name__ == "__main__":
    main()
