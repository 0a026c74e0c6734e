"""Scoring CounterFact records: editlab's batched scorer beside one prompt and one target at a time.

Both give, for every rewrite, paraphrase and neighbour prompt, the likelihoods of the new and of the true target and a
greedy answer of ten tokens. The one-by-one scorer is what a careful script does: one forward pass per prompt and target
on the plain Hugging Face model, and its `generate` (with KV cache) per prompt. Largest difference of the likelihoods
and differing answers are printed with the times.

    python experiments/bench/evaluation.py counterfact.json --records 200
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import Row, now, options_of, parse, write

from editlab import LM
from editlab.data.formats import load_facts
from editlab.evaluation.questions import Asked, asked
from editlab.evaluation.scorer import continuations, force
from editlab.joining import TargetPrefix
from editlab.rows import target_ids

KINDS = ("rewrite", "paraphrase", "neighbour")
NEW_TOKENS = 10


def _targets(q: Asked) -> dict[str, TargetPrefix]:
    """Each target once: a neighbour's own answer may be the true one."""
    return {target: q.prefixes.get(role, "auto") for role, target in q.targets.items()}


@torch.no_grad()
def one_by_one(lm: LM, questions: list[Asked]) -> tuple[list[float], float]:
    """Likelihoods, and the seconds they took."""
    began = now()
    out = []
    for q in questions:
        for target, prefix in _targets(q).items():
            prompt, wanted = target_ids(lm, q.prompt, target, prefix, sink=False)
            logits = lm.model(torch.tensor([[*prompt, *wanted[:-1]]], device=lm.device)).logits[0, len(prompt) - 1 :]
            out.append(-float(logits.log_softmax(-1)[range(len(wanted)), wanted].mean()))
    return out, now() - began


@torch.no_grad()
def one_by_one_answers(lm: LM, questions: list[Asked]) -> tuple[list[str], float]:
    began = now()
    out = []
    for q in questions:
        ids = torch.tensor([lm.tokens(q.prompt)[0]], device=lm.device)
        new = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :]
        out.append(lm.tokenizer.decode(new, skip_special_tokens=True))
    return out, now() - began


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--records", type=int, default=200)
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    facts = load_facts(options.facts)[: options.records]
    questions = asked(facts, KINDS)
    force(lm, [("warm", "up")])
    lm.generate(["warm up"], 2)
    pairs = [(q.prompt, target, prefix) for q in questions for target, prefix in _targets(q).items()]
    print(f"{lm.name}: {len(facts)} records, {len(questions)} prompts, {len(pairs)} likelihoods")

    began = now()
    fast = [f.nll for f in force(lm, pairs)]
    seconds = {"likelihoods, batched": now() - began}
    slow, seconds["likelihoods, one by one"] = one_by_one(lm, questions)
    began = now()
    said = continuations(lm, [q.prompt for q in questions], max_new_tokens=NEW_TOKENS)
    seconds["answers, batched"] = now() - began
    alone, seconds["answers, one by one"] = one_by_one_answers(lm, questions)

    worst = max(abs(a - b) for a, b in zip(fast, slow, strict=True))
    differing = sum(a != b for a, b in zip(said, alone, strict=True))
    ratios = {part: seconds[f"{part}, one by one"] / seconds[f"{part}, batched"] for part in ("likelihoods", "answers")}
    whole = sum(v for k, v in seconds.items() if "one by one" in k) / sum(
        v for k, v in seconds.items() if "batched" in k
    )
    for name, value in seconds.items():
        print(f"{name:26}{value:8.1f} s")
    for part, times in ratios.items():
        print(f"{part}: {times:.1f}x faster")
    print(f"together: {whole:.1f}x faster")
    print(f"largest difference of a likelihood {worst:.1e}; {differing} of {len(said)} answers differ")
    write(
        "evaluation",
        {
            "records": len(facts),
            "prompts": len(questions),
            "seconds": seconds,
            "faster": {**ratios, "together": whole},
            "largest_difference": worst,
            "answers_that_differ": differing,
        },
        [
            Row(
                f"{what} of {len(facts)} CounterFact records",
                "one prompt at a time, plain Hugging Face",
                seconds[f"{part}, batched"],
                seconds[f"{part}, one by one"],
                agrees=agrees,
            )
            for part, what, agrees in (
                ("likelihoods", "likelihoods", f"{worst:.0e} nats"),
                ("answers", "free answers", f"{differing} of {len(said)} differ"),
            )
        ],
    )


if __name__ == "__main__":
    main()
