"""Key statistics of several layers: one truncated pass for all, against the reference code's way, a pass a layer.

The other side does what the layer_stats script of the ROME and MEMIT code does: passages as they come, in batches of a
hundred padded to the longest, a forward that ends at the layer, for each layer anew. Both sides read the same tokens.
"""

from __future__ import annotations

import os
import tempfile

import torch
from common import Row, counted, floor, now, options_of, parse, write

from editlab import LM
from editlab.data.corpus import load_corpus
from editlab.edits.covariance import Moments, StatsSettings, collect, plan
from editlab.hooks.batch import pad_rows


def a_layer(lm: LM, layer: int, rows: list[list[int]]) -> Moments:
    """The moments of one layer, as the reference code gets them."""
    total, count = torch.zeros(lm.adapter.d_mlp, lm.adapter.d_mlp, dtype=torch.float64, device=lm.device), 0
    for first in range(0, len(rows), 100):
        batch = pad_rows(rows[first : first + 100], pivots="right", device=lm.device)
        with lm.session() as s, torch.no_grad():
            s.capture("mlp_key", layer)
            keys = s.run(batch, read=None)["mlp_key", layer]
        inside = keys[batch.mask.bool() & (batch.position_ids > 0)].float()
        total += (inside.T @ inside).double()
        count += len(inside)
    return Moments(total.cpu(), count)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--tokens", type=int, default=15360)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 5, 7])
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    layers = sorted(options.layers)
    corpus, settings = load_corpus(), StatsSettings(tokens=options.tokens)
    batches = plan(lm, corpus, settings, options.tokens)
    rows = [ids[mask.bool()].tolist() for b in batches for ids, mask in zip(b.ids, b.mask, strict=True)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()  # as they would come
    rows = [rows[i] for i in order]
    with tempfile.TemporaryDirectory() as empty:
        os.environ["EDITLAB_CACHE"] = empty
        began = now()
        found = collect(lm, layers, corpus, settings)
        fast = now() - began
    began = now()
    plain = {layer: a_layer(lm, layer, rows) for layer in layers}
    slow = now() - began
    worst = max(float((found[n].covariance - plain[n].covariance).norm() / plain[n].covariance.norm()) for n in layers)
    assert all(found[n].count == plain[n].count for n in layers)
    flops = counted(lambda: a_layer(lm, layers[-1], rows[:20])) * len(rows) / 20
    flops += (len(layers) - 1) * 2 * options.tokens * lm.adapter.d_mlp**2
    print(f"layers {layers}, {options.tokens} tokens: together {fast:.1f} s, layer by layer {slow:.1f} s")
    print(f"{slow / fast:.2f} times faster; relative difference {worst:.1e}")
    row = Row(
        f"key statistics of {len(layers)} layers, {options.tokens:,} tokens",
        "a pass a layer, in the order of the text",
        fast,
        slow,
        floor=floor(flops, options.device),
        agrees=f"{worst:.0e} of C",
    )
    write(
        "key_statistics", {"together_s": fast, "by_layer_s": slow, "speed_up": slow / fast, "difference": worst}, [row]
    )


if __name__ == "__main__":
    main()
