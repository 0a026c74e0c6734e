"""One ROME edit: the value optimisation on the causal cone against the same algorithm with full forwards.

Layer 5, 25 steps, 21 contexts, KL on, no early stop. Both sides get the same rows and must end at the same shift. The
plain side is the reference that the tests use (`tests/reference.py`). Memory is the peak of a fresh process that loads
the model and makes one edit.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import Row, counted, floor, options_of, parse, write

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
FACT = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}


def speed(model: str | None, layer: int) -> dict[str, Any]:
    from reference import optimise_plainly

    from editlab import LM, Fact
    from editlab.edits.keys import contexts, states_at
    from editlab.edits.values import Target, optimise
    from editlab.rows import essence_row, rewrite_row

    lm = LM.from_pretrained(model)
    fact = Fact(**FACT)
    texts = contexts(lm, per_length={5: 10, 10: 10}, seed=0)
    rows = [rewrite_row(lm, fact, sink=True)] + [rewrite_row(lm, fact, context=t, sink=True) for t in texts]
    target = Target(tuple(rows), essence_row(lm, fact, sink=True), states_at(lm, layer, rows[:1]).hidden[0].float())
    settings = SimpleNamespace(steps=25, lr=0.5, clamp=0.75, decay=0.5, kl_factor=0.0625, stop_loss=0.0, steps_on_top=0)
    plain_rows = [(r.ids, r.index, r.reads, r.targets) for r in (*rows, target.essence)]
    block = lm.model.get_submodule(lm.adapter.layers[layer].block)
    optimise(lm, layer, [target], SimpleNamespace(**(vars(settings) | {"steps": 2})))  # warm up
    began = time.perf_counter()
    fast = optimise(lm, layer, [target], settings)[0]
    cone = time.perf_counter() - began
    began = time.perf_counter()
    plain, losses = optimise_plainly(lm.model, block, plain_rows, target.reference, **vars(settings))
    full = time.perf_counter() - began
    cosine = float(torch.nn.functional.cosine_similarity(fast.delta, plain, dim=0))
    worst = max(abs(a - b) for a, b in zip(fast.losses, losses, strict=True))
    longest = max(len(r[0]) for r in plain_rows)
    print(f"{len(plain_rows)} rows of up to {longest} tokens, 25 losses, 24 steps, layer {layer}")
    print(f"full forwards {full:.1f} s, causal cone {cone:.1f} s: {full / cone:.2f} times less")
    print(f"same shift: cosine {cosine:.6f}, largest difference of a loss {worst:.1e}")
    flops = counted(lambda: optimise(lm, layer, [target], settings))
    row = Row(
        f"ROME: one value, {len(rows)} prompts, 25 losses",
        "full forwards",
        cone,
        full,
        floor=floor(flops),
        agrees=f"cosine {cosine:.5f}",
    )
    return {
        "row": row,
        "full_s": full,
        "cone_s": cone,
        "speed_up": full / cone,
        "cosine": cosine,
        "largest_loss_difference": worst,
    }


def memory(model: str | None) -> None:
    """Runs in a process of its own and prints its peak."""
    from editlab import LM

    imported = _peak()
    lm = LM.from_pretrained(model)
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters()) / 1e6
    began = time.perf_counter()
    entry = lm.edit(FACT)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    lm.edit({**FACT, "subject": "Spain"})
    again = time.perf_counter() - began
    print(f"{_peak()} {imported} {weights} {seconds} {again} {entry.edit.info['steps'][0]}")


def _peak() -> float:
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.memory_only:
        memory(options.model)
        return
    command = [sys.executable, __file__, "--memory-only", *(["--model", options.model] if options.model else [])]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-6:]
    peak, imported, weights, first, again, steps = map(float, printed)
    print(f"with the shipped settings: one edit {first:.1f} s ({steps:.0f} steps), the next {again:.1f} s")
    print(
        f"peak memory of the process {peak:.0f} MB = {peak / weights:.2f} x the weights ({weights:.0f} MB); "
        f"{imported:.0f} MB of it are the imported libraries"
    )
    found = speed(options.model, options.layer)
    row = found.pop("row")
    write(
        "rome",
        {
            **found,
            "peak_mb": peak,
            "imported_mb": imported,
            "weights_mb": weights,
            "peak_over_weights": peak / weights,
            "edit_s": first,
            "next_edit_s": again,
        },
        [replace(row, memory=1e6 * (peak - imported - weights))],
    )


if __name__ == "__main__":
    main()
