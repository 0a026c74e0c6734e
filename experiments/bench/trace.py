"""Causal tracing of one prompt: the causal cone against full forwards in batches as large.

    python experiments/bench/trace.py            # every layer and token, 10 noise samples, of the default model
    python experiments/bench/trace.py --plain 6  # six layers of the plain side, which cost the same each, scaled up

Both sides trace the same cells under the same noise; the plain side runs the whole prompt through the whole model, all
tokens of a layer from the subject on in one batch, and takes logits at the last token only. Seconds are of the clock
and of the processor; on a machine with other work the latter's ratio is the one to read.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import Row, options_of, parse, quartiles, write

from editlab import LM, Fact
from editlab.hooks.batch import pad_rows
from editlab.probes import trace as tracing


def plainly(lm: LM, fact: Fact, found: tracing.Trace, layers: list[int]) -> tuple[np.ndarray, list[float]]:
    """(len(layers), T, S) probabilities by full forwards, and the seconds of each layer."""
    config = found.config
    ids, _ = lm.tokens(fact.text, sink=True)
    first, stop = found.subject
    batch = pad_rows([ids], device=lm.device)
    with lm.session() as s, torch.no_grad():
        s.capture("resid_post", None)
        out = s.run(batch)
    clean = torch.stack([out.captured["resid_post", n][0] for n in range(lm.adapter.n_layers)])
    token = int(out.logits[0, -1].argmax())
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, stop - first, lm.adapter.d_model, generator=generator) * found.noise_std
    noise = noise.to(lm.device)
    restored = np.zeros((len(layers), len(ids), config.samples))
    seconds = []
    for i, layer in enumerate(layers):
        began = time.perf_counter()
        for group in (list(range(first)), list(range(first, len(ids)))):
            tokens = torch.tensor(group, device=lm.device)
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
                logits = s.run(rows, read=torch.full((len(at),), len(ids) - 1, device=lm.device)).logits
            p = logits.softmax(-1)[:, token].unflatten(0, (len(tokens), config.samples))
            restored[i, group] = p.cpu().numpy()
        seconds.append(time.perf_counter() - began)
    return restored, seconds


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--plain", type=int, help="layers of the plain side, evenly spread; default all")
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    fact = Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")
    n = lm.adapter.n_layers
    layers = sorted({round(x) for x in np.linspace(0, n - 1, min(options.plain or n, n))})
    tracing.noise_scale(lm)  # warm up
    began = time.perf_counter(), time.process_time()
    found = tracing.trace(lm, fact)
    fast = time.perf_counter() - began[0], time.process_time() - began[1]
    began = time.perf_counter(), time.process_time()
    plain, each = plainly(lm, fact, found, layers)
    scale = n / len(layers)
    full = scale * (time.perf_counter() - began[0]), scale * (time.process_time() - began[1])
    worst = float(np.abs(plain - found.restored[layers]).max())
    cells = found.effect.size
    print(found.headline)
    print(f"{cells} cells of {found.config.samples} samples; {len(layers)} of {n} layers by full forwards, scaled up")
    for what, a, b in (("clock", full[0], fast[0]), ("processor", full[1], fast[1])):
        print(f"{what}: full forwards {a:.1f} s, causal cone {b:.1f} s, {a / b:.2f} times faster")
    print(f"largest difference {worst:.1e}")
    record = {"full_s": full[0], "cone_s": fast[0], "speed_up": full[0] / fast[0], "full_cpu_s": full[1]}
    more = {"cone_cpu_s": fast[1], "speed_up_cpu": full[1] / fast[1], "cells": cells, "largest_difference": worst}
    low, _, high = quartiles([n * x / fast[0] for x in each])
    row = Row(
        f"causal trace of one prompt, {cells} cells of {found.config.samples} samples",
        "full forwards in batches as large",
        fast[0],
        full[0],
        of="" if len(layers) == n else f"{len(layers)} of {n} layers",
        spread=(low, high),
        agrees=f"{worst:.0e}",
    )
    write("trace", record | more | {"plain_layers": len(layers)}, [row])


if __name__ == "__main__":
    main()
