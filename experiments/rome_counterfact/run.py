"""ROME on facts that the model prefers correctly: does the edit fire, generalise, and leave neighbours alone?

Every fact is edited on its own and undone. Scores are taken as a user types the prompt ("bare") and with a sink
token in front ("sink"):

- efficacy, paraphrase: P(new) > P(true), per-token probability; chance 1/2 for a model that knows nothing of either;
- says it: the greedy answer begins with the new object;
- neighbourhood: P(true) > P(new) on prompts about other subjects, before and after.

A second group asks what the first cannot: facts whose subject is the very first token of the prompt, made from the
factbook's capitals. Intervals are Wilson's, 95 %.

    python experiments/rome_counterfact/run.py FACTS.json [--n 20] [--first 10] [--model M] [SETTING=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from editlab import LM, Fact
from editlab.config import parse_overrides
from editlab.data.factbook import capitals
from editlab.evaluation.answers import begins
from editlab.evaluation.scorer import force, score_again, score_facts
from editlab.facts import Question

sys.path.append(str(Path(__file__).parents[1]))
from shared import read_facts

FORMS = {"bare": False, "sink": True}


def preferred(lm: LM, facts: list[Fact], n: int) -> list[Fact]:
    """The first n facts whose true object the unedited model finds likelier than the new one, bare and with a sink."""
    kept: list[Fact] = []
    for i in range(0, len(facts), 20):
        chunk = [f for f in facts[i : i + 20] if f.target_true]
        ok = [True] * len(chunk)
        for sink in FORMS.values():
            new = force(lm, [(f.text, f.target_new, f.target_prefix) for f in chunk], sink=sink)
            old = [(f.text, f.target_true, f.prefix_of(f.text, f.target_true)) for f in chunk if f.target_true]
            true = force(lm, old, sink=sink)
            ok = [o and t.nll < w.nll for o, t, w in zip(ok, true, new, strict=True)]
        kept += [f for f, o in zip(chunk, ok, strict=True) if o]
        if len(kept) >= n:
            break
    return kept[:n]


def first_token_facts(lm: LM) -> list[Fact]:
    """Capitals of countries that are one token at the very start of the prompt; the new capital is the next one's."""
    pairs = [(c, city) for c, city in capitals() if len(lm.tokens(c)[0]) == 1]
    facts = []
    for i, (country, city) in enumerate(pairs):
        donor = pairs[(i + 1) % len(pairs)][1]
        others = [pairs[(i + k) % len(pairs)][0] for k in (2, 3, 4)]
        facts.append(
            Fact(
                id=f"first-{country}",
                prompt="{} is a country whose capital is",
                subject=country,
                target_new=donor,
                target_true=city,
                paraphrases=(f"{country} is a nation with a capital called",),
                neighbours=tuple(Question(prompt=f"{other} is a country whose capital is") for other in others),
            )
        )
    return facts


def measure(lm: LM, facts: list[Fact], settings: dict[str, Any], group: str, console: Console) -> dict[str, Any]:
    counts: dict[str, list[bool]] = defaultdict(list)
    seconds: list[float] = []
    before = {form: score_facts(lm, facts, sink=sink) for form, sink in FORMS.items()}
    for i, fact in enumerate(facts):
        began = time.perf_counter()
        entry = lm.edit(fact, **settings)
        seconds.append(time.perf_counter() - began)
        for form, sink in FORMS.items():
            for old, new in zip(before[form][i], score_again(lm, [before[form][i]], sink=sink)[0], strict=True):
                if new.asked.kind == "neighbour":
                    # A neighbour of these made-up facts has another true answer: it counts as kept if it is said still.
                    kept = new.p("true") > new.p("new") if group == "given" else new.answer[:12] == old.answer[:12]
                    was = old.p("true") > old.p("new") if group == "given" else True
                    counts[f"neighbourhood before, {form}"].append(was)
                    counts[f"neighbourhood after, {form}"].append(kept)
                else:
                    name = "efficacy" if new.asked.kind == "rewrite" else "paraphrase"
                    counts[f"{name}, {form}"].append(new.p("new") > new.p("true"))
                    if new.asked.kind == "rewrite":
                        counts[f"says it, {form}"].append(begins(new.answer, fact.target_new))
        forms = "+".join(entry.edit.info["forms"])
        console.print(
            f"{i + 1:3} {fact.subject} -> {fact.target_new}: {seconds[-1]:.1f} s, keys {forms}", highlight=False
        )
        lm.undo()
    assert lm.state_hash == lm.base_hash
    table = Table(title=f"{group}: {len(facts)} facts, median {statistics.median(seconds):.1f} s an edit")
    for header in ("score", "share", "n", "95 % interval"):
        table.add_column(header)
    result: dict[str, Any] = {"n": len(facts), "seconds": seconds}
    for name, hits in sorted(counts.items()):
        interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
        table.add_row(
            name, f"{sum(hits) / len(hits):.1%}", str(len(hits)), f"{interval.low:.1%} to {interval.high:.1%}"
        )
        result[name] = {"share": sum(hits) / len(hits), "n": len(hits), "low": interval.low, "high": interval.high}
    Console().print(table)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("settings", nargs="*", help="SETTING=VALUE of rome")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--first", type=int, default=10)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=Path("runs/rome_counterfact.json"))
    options = parser.parse_args()
    console = Console(stderr=True)
    settings = parse_overrides(options.settings)
    facts = read_facts(parser, [options.facts])
    lm = LM.from_pretrained(options.model)
    found = {}
    given = preferred(lm, facts, options.n)
    if given:
        found["given"] = measure(lm, given, settings, "given", console)
    first = preferred(lm, first_token_facts(lm), options.first)
    if first:
        found["first token"] = measure(lm, first, settings, "first token", console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"model": lm.name, "base": lm.base_hash, "settings": settings, **found}, indent=2)
    )


if __name__ == "__main__":
    main()
