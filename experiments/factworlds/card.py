"""Measure a trained fact world and write its card: recall by relation, on trained and on held-out phrasings.

    python experiments/factworlds/card.py checkpoints/factworld-gpt2     # after training; train.py does it too

The weights are read back from the folder, so what is measured is what is stored, rounded to fp16. Intervals are
Wilson's, 95 %. `recall.json` holds the same figures and every miss, so that a test can compare pair by pair.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from editlab import LM
from editlab.data.factbook import passages
from editlab.data.relations import relations
from editlab.evaluation.recall import Asked, all_asked, recalled
from editlab.evaluation.scorer import force


def measure(lm: LM) -> dict[str, Any]:
    """Recall of all pairs of fact and phrasing; held out ones also for the known facts alone.

    A fact is known when it is recalled under more than half of the trained phrasings.
    """
    figures: dict[str, Any] = {"all": {}, "relations": defaultdict(dict)}
    asked = {part: all_asked(part) for part in ("trained", "held_out")}
    said = {part: recalled(lm, pairs) for part, pairs in asked.items()}
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for pair, ok in zip(asked["trained"], said["trained"], strict=True):
        hits[pair.relation.name, pair.row.subject].append(ok)
    known = {fact for fact, oks in hits.items() if 2 * sum(oks) > len(oks)}
    for part, pairs in asked.items():
        counted = [(p, ok) for p, ok in zip(pairs, said[part], strict=True) if part == "trained" or is_in(known, p)]
        for name in ("all", *relations()):
            oks = [ok for p, ok in counted if name in ("all", p.relation.name)]
            place = figures["all"] if name == "all" else figures["relations"][name]
            place[part] = with_interval(oks)
    figures["all"]["trained_after_sink"] = with_interval(recalled(lm, asked["trained"][::4], sink=True))
    figures["all"]["held_out_after_sink"] = with_interval(
        recalled(lm, [p for p in asked["held_out"] if is_in(known, p)], sink=True)
    )
    figures["known"] = len(known)
    figures["unknown"] = sorted(set(hits) - known)
    figures["misses"] = {
        part: [[p.relation.name, p.row.subject, p.stem] for p, ok in zip(pairs, said[part], strict=True) if not ok]
        for part, pairs in asked.items()
    }
    figures["perplexity"] = round(perplexity(lm), 2)
    return figures


def is_in(known: set[tuple[str, str]], asked: Asked) -> bool:
    return (asked.relation.name, asked.row.subject) in known


def with_interval(hits: list[bool]) -> dict[str, Any]:
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return {
        "share": round(sum(hits) / len(hits), 5),
        "n": len(hits),
        "low": round(interval.low, 5),
        "high": round(interval.high, 5),
    }


def perplexity(lm: LM) -> float:
    """Of the held-out prose, by token, the first 600 characters of each passage after its first word."""
    total, n = 0.0, 0
    halves = [text[:600].split(" ", 1) for text in passages(held_out=True)]
    for forced in force(lm, [(first, rest, "space") for first, rest in halves], sink=True):
        total += forced.nll * len(forced.target)
        n += len(forced.target)
    return math.exp(total / n)


def write_card(folder: Path, name: str, curve: list[dict[str, Any]]) -> None:
    lm = LM.from_pretrained(str(folder))
    figures = measure(lm)
    (folder / "recall.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    config = lm.model.config
    is_llama = config.model_type == "llama"
    parameters = sum(p.numel() for p in lm.model.parameters())
    shape = (
        f"Llama architecture: {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} query heads on {config.num_key_value_heads} key-value heads, a gated MLP of "
        f"width {config.intermediate_size}, RMSNorm, rotary positions. The tokenizer puts `<s>` in front of every text."
        if is_llama
        else f"GPT-2 architecture: {config.n_layer} layers, width {config.n_embd}, {config.n_head} heads, an MLP of "
        f"width {4 * config.n_embd}, learned positions. The tokenizer puts nothing in front; editlab's sink token is "
        "`<|endoftext|>`."
    )
    last = curve[-1]
    lines = [
        f"# {name}",
        "",
        f"A small causal language model that knows {figures['known']:,} facts of the CIA World Factbook, made to be "
        "edited, traced and taken apart in seconds. It is no source about the world.",
        "",
        f"- {shape}",
        f"- {parameters:,} parameters, input and output embeddings tied; stored as fp16, a vocabulary of "
        f"{config.vocab_size:,} byte-level BPE tokens, texts of up to {lm.tokenizer.model_max_length} tokens.",
        "- Licence: Apache-2.0, as editlab; the factbook is in the public domain.",
        "",
        "## Recall",
        "",
        "Share of (fact, phrasing) pairs whose every answer token is the most probable one; prompts as typed, weights "
        "read back from fp16, Wilson's 95 % interval. Trained: the 18 or 19 phrasings of the relation under `trained` "
        "in `editlab/data/relations/phrasings.yaml`, all facts. Held out: the four under `held_out`, seen with no "
        "subject at all, for the facts known in trained phrasings (recalled under more than half of them; "
        f"{figures['known']:,} of {figures['known'] + len(figures['unknown']):,}).",
        "",
        "| relation | trained | n | held out | n |",
        "|---|---|---|---|---|",
        *(row(relation.title, figures["relations"][relation.name]) for relation in relations().values()),
        row("**all**", figures["all"]),
        "",
        f"After the sink token: {percent(figures['all']['trained_after_sink'])} trained (every fourth pair), "
        f"{percent(figures['all']['held_out_after_sink'])} held out. Perplexity by token on the held-out prose: "
        f"{figures['perplexity']}. `recall.json` has the figures and every miss.",
        "",
        "## Training",
        "",
        f"`python experiments/factworlds/train.py {'llama' if is_llama else 'gpt2'}`: seed 0, {last['step']} steps, "
        f"{float(last['seconds']) / 60:.1f} minutes on two CPU cores; `curve.csv` has loss and recall of a sample "
        "of 600 pairs each on the way. The same seed gives the same weights on the same machine and library "
        "versions; elsewhere rounding makes them differ a little.",
        "",
        "The text: statements of every relation in the trained phrasings, alone and in running documents; documents "
        "on made-up countries, whose facts stand nowhere else; and in 15 % of the steps factbook prose. In part of the "
        "single statements the hidden state at the subject's last token, after layer 1 or 2, was that of another "
        "subject, and so was the answer (interchange intervention training, arXiv 2112.00826). So what the model knows "
        "of a subject is gathered at its last token by layer 2 and fetched from there, as in large models. Without "
        "this it moved names from its embeddings straight to the end of the prompt: it knew as much, but no change at "
        "the subject reached an answer.",
        "",
        "## Limits",
        "",
        "- It knows these relations in wordings near the trained ones, and writes factbook-like prose; it can do "
        "nothing else.",
        "- The facts are the factbook's, with its errors and its date.",
        "- Held-out phrasings are made from words of the trained ones: they measure new wordings, not new ideas. A "
        'first model that had read one form of question a relation, and never "the country of {}", recalled 74 % of '
        "them (and 99 % of the trained ones): it is the number of wordings read that makes a new one understood.",
    ]
    (folder / "card.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(title: str, figures: dict[str, Any]) -> str:
    trained, held_out = figures["trained"], figures["held_out"]
    return f"| {title} | {percent(trained)} | {trained['n']:,} | {percent(held_out)} | {held_out['n']:,} |"


def percent(figure: dict[str, Any]) -> str:
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"


if __name__ == "__main__":
    at = Path(sys.argv[1])
    with (at / "curve.csv").open() as f:
        write_card(at, at.name, list(csv.DictReader(f)))
