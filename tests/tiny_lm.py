"""An `LM` in milliseconds: a tiny random model of any family with a real byte-level BPE tokenizer."""

from __future__ import annotations

import json
from typing import Any

from conftest import make_model
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from editlab.lm import LM

SINK = "<|endoftext|>"
BOS = "<s>"
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("Ġ", "i"), ("Ġ", "an"), ("Ġi", "s")]


def make_tokenizer(add_bos: bool = False) -> PreTrainedTokenizerFast:
    """Every text round-trips: all 256 bytes, a few merges, and `<|endoftext|>` as the end of a sequence.

    Args:
        add_bos: have the tokenizer itself put `<s>` in front, as Llama's does.
    """
    specials = [SINK, BOS] if add_bos else [SINK]
    tokens = specials + sorted(ByteLevel.alphabet()) + [a + b for a, b in MERGES]
    first = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    bos = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [tokens.index(BOS)], "tokens": [BOS]}} if add_bos else {},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": t,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for i, t in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": bos if add_bos else byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": MERGES},
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)),
        eos_token=SINK,
        **({"bos_token": BOS} if add_bos else {}),
    )


def make_lm(family: str, seed: int = 0, *, add_bos: bool = False, **changes: Any) -> LM:
    """A random LM of `family`; `changes` go into the model's config."""
    tokenizer = make_tokenizer(add_bos)
    end = tokenizer.eos_token_id
    start = tokenizer.bos_token_id if add_bos else end
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": end, "bos_token_id": start, "eos_token_id": end}
    if family in ("gpt2", "gptj"):
        sizes["n_positions"] = 512
    return LM(make_model(family, seed, **(sizes | changes)), tokenizer, name=f"tiny-{family}")
