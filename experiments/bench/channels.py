"""Scores of all pairs of heads from e x e cores, against dense products; time and memory.

    python experiments/bench/channels.py             # the default model, three modes, every component

Every dense pair is a product of two d x d matrices per mode, and one per component of the writer; a sample of pairs is
timed and the rest is reckoned from it. The largest difference between both is taken over that sample.

TransformerLens scores heads only, from cores too, and holds what it needs of all pairs at once, so both score the first
ten layers there. It folds no norm, so these have a gain of one; their scores of values then mean the same.
"""

from __future__ import annotations

import copy
import resource
import time

import numpy as np
import psutil
import torch
from common import Row, beside, interleaved, options_of, parse, write
from torch import Tensor

from editlab import LM
from editlab.probes.channels.composition import component_scores, compose
from editlab.probes.channels.factors import Factors, factorise
from editlab.probes.channels.parts import MODES, Mode


def dense(f: Factors, heads: dict[Mode, np.ndarray], pairs: list[tuple[int, int]]) -> tuple[float, float, float]:
    """Seconds for these pairs by dense products, heads alone and with components, and the largest difference.

    Timed in the factors' own precision; compared in float64, so that the difference is the fast scores' alone.
    """
    worst = whole_s = parts_s = 0.0
    for a, b in pairs:
        for mode in MODES:
            directions, weights = f.reads(mode)
            own = f.u[a], f.s[a], f.v[a], directions[b], weights[b]
            began = time.perf_counter()
            ov, reader = _matrices(*own)
            (ov @ reader).norm() / (ov.norm() * reader.norm())
            whole_s += time.perf_counter() - began
            began = time.perf_counter()
            for i in range(f.width):
                (torch.outer(f.u[a, :, i], f.v[a, i]) @ reader).norm() / reader.norm()
            parts_s += time.perf_counter() - began
            ov, reader = _matrices(*(x.double() for x in own))
            whole = float((ov @ reader).norm() / (ov.norm() * reader.norm()))
            each = (f.v[a].double() @ reader).norm(dim=1) / reader.norm()
            fast = component_scores([f], mode, a, b)
            worst = max(worst, abs(whole - heads[mode][a, b]), float(np.abs(each.numpy() - fast).max()))
    return whole_s, whole_s + parts_s, worst


def _matrices(u: Tensor, s: Tensor, v: Tensor, read: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """OV of the writer; of the reader M without the turn on its far side, which no norm sees."""
    return u @ (s[:, None] * v), read @ (weights[:, None] * read.mT)


def in_transformer_lens(lm: LM, layers: int) -> tuple[int, dict[str, list[float]], float]:
    """Pairs of heads, seconds of editlab and of TransformerLens in each round, and how far scores of values differ."""
    model = copy.deepcopy(lm.model)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    for path in (paths.attn_norm for paths in lm.adapter.layers[:layers]):
        model.get_submodule(path).weight.data.fill_(1.0)
    few = LM(model, lm.tokenizer)
    bridge = few.to_bridge()
    scores = {}

    def editlab() -> None:
        factors = factorise(few)
        scores["editlab"] = {mode: compose([factors], mode, backward=False).head for mode in MODES}["v"]

    def transformer_lens() -> None:
        scores["TransformerLens"] = {mode: bridge.all_composition_scores(mode).scores for mode in "QKV"}["V"]

    rounds = interleaved({"editlab": editlab, "TransformerLens": transformer_lens}, 3)
    theirs = scores["TransformerLens"].flatten(2).flatten(0, 1).numpy()
    forward = theirs > 0
    apart = float(np.abs(scores["editlab"] - theirs)[forward].max())
    return int(forward.sum()), rounds, apart


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="dense pairs that are timed")
    parser.add_argument("--layers", type=int, default=10, help="of the model that TransformerLens scores")
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    _ = lm.adapter
    process = psutil.Process()
    before, began, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    factors = factorise(lm)
    heads = {mode: compose([factors], mode).head for mode in MODES}
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    high = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux
    rng = np.random.default_rng(0)
    n = factors.n
    pairs = []
    while len(pairs) < options.pairs:
        a, b = sorted(rng.choice(n, 2, replace=False).tolist())
        if a // factors.n_heads < b // factors.n_heads:
            pairs.append((a, b))
    heads_s, all_s, worst = dense(factors, heads, pairs)
    layer = np.arange(n) // factors.n_heads
    total = int((layer[:, None] != layer[None, :]).sum())
    by_heads, by_all = (x / len(pairs) * total for x in (heads_s, all_s))
    print(f"{n} heads, {total} pairs in both orders, 3 modes, {factors.width} components each")
    print(f"e x e cores: {wall:.1f} s ({cpu:.1f} s of processor time, {torch.get_num_threads()} threads), ", end="")
    print(f"{(high - before) / 1e6:.0f} MB on top of the model")
    print(f"dense products: {by_heads:.0f} s for heads alone ({by_heads / wall:.0f} times as long), ", end="")
    print(f"{by_all:.0f} s with every component ({by_all / wall:.0f} times); reckoned from {len(pairs)} pairs")
    print(f"largest difference from float64 {worst:.1e}")
    n_pairs, rounds, apart = in_transformer_lens(lm, options.layers)
    print(f"the first {options.layers} layers, three modes: ", end="")
    print(", ".join(f"{name} {1e3 * sorted(x)[len(x) // 2]:.0f} ms" for name, x in rounds.items()), end="")
    print(f"; scores of values differ by {apart:.0e}")
    what = f"composition scores of {total:,} pairs of heads, 3 modes"
    rows = [
        Row(
            f"{what}, every component",
            "dense products",
            wall,
            by_all,
            of=f"{len(pairs)} pairs",
            memory=high - before,
            agrees=f"{worst:.0e}",
        ),
        beside(
            f"the same of heads alone, {n_pairs:,} pairs",
            rounds,
            "editlab",
            "TransformerLens",
            agrees=f"{apart:.0e}",
            why="it scores every component too",
        ),
    ]
    found: dict[str, object] = {
        "wall_s": wall,
        "cpu_s": cpu,
        "extra_bytes": high - before,
        "pairs": total,
        "largest_difference": worst,
        "speed_up_heads": by_heads / wall,
        "speed_up_components": by_all / wall,
    }
    write("channels", found, rows)


if __name__ == "__main__":
    main()
