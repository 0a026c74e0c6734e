"""A tiny random model whose tokenizer knows the tasks' words, each one token after a space."""

from __future__ import annotations

import json
from typing import Any

from conftest import make_model
from tiny_lm import SINK
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from editlab import LM
from editlab.probes.channels.tasks import ITEMS, NAMES, PLACES, THINGS


def word_lm(family: str = "llama", seed: int = 0, **changes: Any) -> LM:
    """Every word of the tasks is grown letter by letter from its space, so BPE makes it one token."""
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys([*NAMES, *ITEMS, *PLACES, *THINGS, "the", "and", "to", "went"]):
        for i, letter in enumerate(word):
            merges["Ġ" + word[:i], letter] = None
    tokens = list(dict.fromkeys([SINK, *sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)]))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": SINK, **special}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(m) for m in merges]},
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), eos_token=SINK)
    sizes = {"vocab_size": len(tokens), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    if family in ("gpt2", "gptj"):
        sizes["n_positions"] = 512
    return LM(make_model(family, seed, **(sizes | changes)), tokenizer, name=f"words-{family}")
