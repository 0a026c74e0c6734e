"""Many target values at once: one batched optimisation on the causal cone against one by one with full forwards.

    python experiments/bench/values.py FACTS.json --facts 64 --plain 8

The settings are MEMIT's for the model. The batched side optimises all facts; the plain side (the reference that the
tests use, `tests/reference.py`) the first `--plain` of them, in the same run, and its time is scaled up to all.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from common import Row, counted, floor, options_of, parse, quartiles, write

from editlab import LM
from editlab.config import build
from editlab.data.formats import load_facts
from editlab.edits.methods.memit import Config
from editlab.edits.preserve import preserving
from editlab.edits.presets import with_preset
from editlab.edits.settings import edit_layers
from editlab.edits.targets import forms
from editlab.edits.values import optimise_all

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))


def main() -> None:
    from reference import optimise_plainly

    parser = options_of(__doc__)
    parser.add_argument("facts_file", type=Path)
    parser.add_argument("--facts", type=int, default=64)
    parser.add_argument("--plain", type=int, default=8)
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    settings = build(Config, with_preset(lm.adapter, "memit", {}), "memit")
    layer = edit_layers(lm.adapter, settings)[-1]
    facts = load_facts(options.facts_file)[: options.facts]
    found = [f for of in forms(lm, facts, layer, settings, preserving(lm, layer, settings)) for f in of]
    targets = [form.target for form in found]
    began = time.perf_counter()
    values = optimise_all(lm, layer, targets, settings)
    fast = time.perf_counter() - began
    chosen = {name: getattr(settings, name) for name in ("steps", "lr", "clamp", "decay", "kl_factor", "stop_loss")}
    block = lm.model.get_submodule(lm.adapter.layers[layer].block)
    each, cosines = [], []
    for target, value in list(zip(targets, values, strict=True))[: options.plain]:
        rows = [
            (r.ids, r.index, r.reads, r.targets) for r in (*target.rows, *([target.essence] if target.essence else []))
        ]
        began = time.perf_counter()
        delta, _ = optimise_plainly(lm.model, block, rows, target.reference, **chosen)
        each.append(time.perf_counter() - began)
        cosines.append(float(torch.nn.functional.cosine_similarity(value.delta, delta, dim=0)))
    plain = sum(each)
    scaled = plain * len(targets) / len(each)
    few = targets[:: max(1, len(targets) // 4)]
    flops = counted(lambda: optimise_all(lm, layer, few, settings)) * len(targets) / len(few)
    low, _, high = quartiles([x * len(targets) / fast for x in each])
    row = Row(
        f"MEMIT: values of {len(facts)} facts",
        "one by one with full forwards",
        fast,
        scaled,
        of=f"{len(each)} of {len(targets)} values",
        spread=(low, high),
        floor=floor(flops, options.device),
        agrees=f"cosine {min(cosines):.5f}",
    )
    print(f"{len(facts)} facts, {len(targets)} values, layer {layer}, {settings.steps} losses at most")
    print(
        f"batched on the cone {fast:.1f} s; full forwards {plain:.1f} s for {len(cosines)}, so {scaled:.1f} s for all"
    )
    print(f"{scaled / fast:.1f} times faster; cosine of the shifts at least {min(cosines):.5f}")
    write("values", {"cone_s": fast, "full_s": scaled, "speed_up": scaled / fast, "least_cosine": min(cosines)}, [row])


if __name__ == "__main__":
    main()
