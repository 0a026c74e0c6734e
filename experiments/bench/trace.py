"""Causal tracing of one prompt: the causal cone against full forwards in batches as large.

    python experiments/bench/trace.py            # every layer and token, 10 noise samples, of the default model

Both sides trace the same cells under the same noise; the plain side runs the whole prompt through the whole model, all
tokens of a layer in batches of the same rows, and takes logits at the last token only.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import options_of, parse, write

from editlab import LM, Fact
from editlab.hooks.batch import pad_rows
from editlab.probes import trace as tracing


def plainly(lm: LM, fact: Fact, found: tracing.Trace) -> np.ndarray:
    """(L, T, S) probabilities by full forwards."""
    config = found.config
    ids, _ = lm.tokens(fact.text, sink=True)
    first, stop = found.subject
    batch = pad_rows([ids])
    with lm.session() as s, torch.no_grad():
        s.capture("resid_post", None)
        out = s.run(batch)
    clean = torch.stack([out.captured["resid_post", n][0] for n in range(lm.adapter.n_layers)])
    token = int(out.logits[0, -1].argmax())
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, stop - first, lm.adapter.d_model, generator=generator) * found.noise_std
    restored = np.zeros((lm.adapter.n_layers, len(ids), config.samples))
    for layer in range(lm.adapter.n_layers):
        for group in [list(range(first)), *tracing.groups(first, len(ids), config.samples)]:
            tokens = torch.tensor(group)
            at = tokens.repeat_interleave(config.samples)
            rows = batch.rows(torch.zeros(len(at), dtype=torch.long))
            more = noise.repeat(len(tokens), 1, 1)

            def noisy(part: torch.Tensor, more: torch.Tensor = more) -> torch.Tensor:
                part = part.clone()
                part[:, first:stop] += more
                return part

            with lm.session() as s, torch.no_grad():
                s.patch("embed", None, noisy)
                s.patch("resid_post", layer, clean[layer][at], at=at)
                logits = s.run(rows, read=torch.full((len(at),), len(ids) - 1)).logits
            p = logits.softmax(-1)[:, token].unflatten(0, (len(tokens), config.samples))
            restored[layer, group] = p.numpy()
    return restored


def main() -> None:
    parser = options_of(__doc__)
    options = parse(parser)
    lm = LM.from_pretrained(options.model)
    fact = Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")
    tracing.noise_scale(lm)  # warm up
    began = time.perf_counter()
    found = tracing.trace(lm, fact)
    fast = time.perf_counter() - began
    began = time.perf_counter()
    plain = plainly(lm, fact, found)
    full = time.perf_counter() - began
    worst = float(np.abs(plain - found.restored).max())
    cells = found.effect.size
    print(found.headline)
    print(f"{cells} cells of {found.config.samples} samples: full forwards {full:.1f} s, causal cone {fast:.1f} s")
    print(f"{full / fast:.1f} times faster, largest difference {worst:.1e}")
    write(
        "trace", {"full_s": full, "cone_s": fast, "speed_up": full / fast, "cells": cells, "largest_difference": worst}
    )


if __name__ == "__main__":
    main()
