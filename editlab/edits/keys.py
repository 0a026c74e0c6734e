"""Contexts, and the keys and values at the edited token.

k is the input of the MLP's down projection at the subject's last token, m its output, h the residual stream
after the block: one forward, truncated after the edit layer. Averaging k over random contexts makes the edit fire
in texts other than the bare prompt (ROME, arXiv 2202.05262, eq. 3). Contexts are grouped as in MEMIT's code: half
the weight on the prompt itself, half shared by the contexts.

Deviation from the reference code: contexts come from a seeded generator and always from the unedited weights, so
that they do not depend on what the process did before.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from editlab.hooks.batch import pad_rows
from editlab.rows import Row
from editlab.state.files import cached_json

if TYPE_CHECKING:
    from editlab.lm import LM

SEEDS = ("The", "Therefore", "Because", "I", "You")


Begin = Literal["both", "memit", "rome"]


def contexts(lm: LM, *, per_length: dict[int, int], seed: int, begin: Begin = "both") -> list[str]:
    """Random texts to put in front of a prompt.

    Args:
        per_length: how many texts of which length in tokens, the seed word included; {10: 5} is MEMIT's choice,
            {5: 10, 10: 10} ROME's.
        seed: of the sampler (top-k 5).
        begin: what is continued: "both" a word after a sink token, "memit" a word as the tokenizer gives it, "rome" the
            sink token alone, which counts as one of the tokens.
    """
    settings: dict[str, Any] = {"lengths": sorted(per_length.items()), "seed": seed, "words": SEEDS}
    settings["sampled"] = "top-k 5 alone"
    if begin != "both":
        settings["begin"] = begin
    key = hashlib.sha256(json.dumps([lm.base_hash, lm.tokenizer_hash, settings]).encode()).hexdigest()[:20]
    return cached_json("contexts", key, lambda: _sample(lm.pristine(), per_length, seed, begin))


def _sample(lm: LM, per_length: dict[int, int], seed: int, begin: Begin) -> list[str]:
    out: list[str] = []
    generator = torch.Generator(lm.device).manual_seed(seed)
    for length, count in sorted(per_length.items()):
        words = [SEEDS[i % len(SEEDS)] if begin != "rome" else "" for i in range(count)]
        rows = [lm.tokens(word, sink=begin != "memit")[0] for word in words]
        batch = pad_rows(rows, device=lm.device)
        new = max(1, length - (len(rows[0]) - (begin == "both")))
        ids = lm.generate_ids(batch, new, generator=generator, do_sample=True, top_k=5, min_new_tokens=new)
        for word, row in zip(words, ids, strict=True):
            text = word + lm.tokenizer.decode(row, skip_special_tokens=True)
            out.append(" ".join(text.split()) if begin == "both" else _as_released(text))
    return out


def _as_released(text: str) -> str:
    """The text as the released code puts it in front of prompts; braces, which it cannot format, become spaces."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("{", " ").replace("}", " ")


@dataclass(frozen=True)
class TokenStates:
    """What one layer's MLP does at one token of each row.

    Attributes:
        key: (n, d_mlp) input of the down projection.
        value: (n, d_model) its output, bias included.
        hidden: (n, d_model) residual stream after the block.
    """

    key: Tensor
    value: Tensor
    hidden: Tensor

    def rows(self, which: slice) -> TokenStates:
        """The states of some of the rows."""
        return TokenStates(self.key[which], self.value[which], self.hidden[which])


def states_at(lm: LM, layer: int, rows: Sequence[Row], *, max_tokens: int = 4096) -> TokenStates:
    """Keys, values and hidden states at each row's edited token; float32 or wider, on the model's device."""
    parts: list[list[Tensor]] = []
    order = sorted(range(len(rows)), key=lambda i: rows[i].index)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (rows[order[stop]].index + 1) * (stop + 1 - start) <= max_tokens:
            stop += 1
        # Nothing after the edited token matters to it.
        chunk = [rows[i].ids[: rows[i].index + 1] for i in order[start:stop]]
        batch = pad_rows(chunk, device=lm.device)
        with lm.session() as s, torch.no_grad():
            for site in ("mlp_key", "mlp_value", "resid_post"):
                s.capture(site, layer, at=-1)
            got = s.run(batch, read=None)
        parts.append([got[site, layer] for site in ("mlp_key", "mlp_value", "resid_post")])
        start = stop
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    key, value, hidden = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    return TokenStates(key, value, hidden)
