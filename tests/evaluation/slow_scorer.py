"""The scorer as one would write it first: one prompt, one target, one token at a time, whole forward passes.

It shares nothing with the library but the model and the tokenizer.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def first_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts in front of a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer("a")["input_ids"][: -len(plain)] if len(tokenizer("a")["input_ids"]) > len(plain) else []


def split(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Prompt ids and target ids of the jointly encoded text."""
    text = f"{prompt} {target}"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    head = [i for i, (_, end) in zip(ids, offsets, strict=True) if end <= len(prompt)]
    return first_ids(tokenizer) + head, ids[len(head) :]


@torch.no_grad()
def nll(model: Any, tokenizer: Any, prompt: str, target: str) -> float:
    """Mean negative log-likelihood per target token."""
    ids, wanted = split(tokenizer, prompt, target)
    total = 0.0
    for token in wanted:
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        total -= float(logits[token] - logits.logsumexp(0))
        ids = [*ids, token]
    return total / len(wanted)


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, n: int) -> str:
    """n greedy tokens, without a cache; stops at the end-of-sequence token."""
    ids = first_ids(tokenizer) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new: list[int] = []
    for _ in range(n):
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == model.generation_config.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True)


def counterfact(model: Any, tokenizer: Any, fact: Any) -> dict[str, float]:
    """ES, PS, NS and their magnitudes for one fact, straight from their definitions."""
    groups = {
        "efficacy": ([fact.text], fact.target_new, fact.target_true),
        "paraphrase": (fact.paraphrases, fact.target_new, fact.target_true),
        "neighbourhood": ([q.prompt for q in fact.neighbours], fact.target_true, fact.target_new),
    }
    out = {}
    for name, (prompts, winner, loser) in groups.items():
        pairs = [(nll(model, tokenizer, p, winner), nll(model, tokenizer, p, loser)) for p in prompts]
        out[name] = sum(a < b for a, b in pairs) / len(pairs)
        out[f"{name}_magnitude"] = sum(math.exp(-a) - math.exp(-b) for a, b in pairs) / len(pairs)
    return out
