"""The side memory of WISE: training on frozen rows against full forwards, and what routing adds to a forward pass.

    python experiments/bench/wise.py

Both trainings take the same rows, steps, mask and margins for one fact; the plain one runs every block for every row,
the irrelevant texts included, and takes logits everywhere. The forward pass is 128 tokens, eight rows, with one bank in
force that no row is routed to, against the same model without it.
"""

from __future__ import annotations

import time

import torch
from common import options_of, parse, write

from editlab import LM, Fact
from editlab.config import build
from editlab.edits.irrelevant import near, pool, subjects
from editlab.edits.keys import contexts
from editlab.edits.methods.wise import Config
from editlab.edits.presets import with_preset
from editlab.edits.settings import memory_layer
from editlab.edits.side_training import Rows, inputs_of, margin_loss, train
from editlab.hooks.batch import pad_rows
from editlab.memories.kinds.wise import mask_of
from editlab.rows import read_mask, rewrite_row

FACT = Fact(prompt="The capital of {} is", subject="France", target_new="Rome")
STEPS = 10


def plainly(lm: LM, layer: int, config: Config, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The values and the seconds of `STEPS` steps with full forwards."""
    texts = contexts(lm, per_length=config.contexts, seed=config.seed)
    rows = [rewrite_row(lm, FACT, context=text, sink=False) for text in ("", *texts)]
    own = pad_rows([row.ids for row in rows], pivots="right", prompts=[row.reads[0] + 1 for row in rows])
    hard = near(FACT, subjects(), config.near, seed=config.seed)
    loose = pool(config.pool, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    values = torch.zeros(len(mask), requires_grad=True)
    adam = torch.optim.Adam([values], lr=config.lr)
    shape = (lm.adapter.d_model, lm.adapter.d_mlp)
    ref = lm.adapter.down(lm.model, layer)
    weight = ref.oriented(lm.model.get_parameter(ref.name).detach())

    def run(batch, change):
        seen = {}

        def add(module, args, output):
            seen["added"] = args[0] @ change.T
            seen["plain"] = args[0] @ weight.T
            return output + seen["added"]

        handle = lm.model.get_submodule(lm.adapter.layers[layer].down).register_forward_hook(add)
        try:
            logits = lm.model(batch.ids, attention_mask=batch.mask).logits
        finally:
            handle.remove()
        keep = batch.mask.bool()
        if batch.ends is not None:
            keep = keep & (torch.arange(batch.width) < batch.ends[:, None])
        sums = [(x.norm(dim=-1) * keep).sum(1) for x in (seen["added"], seen["plain"])]
        return logits, sums[0] / sums[1]

    started = time.perf_counter()
    for step in range(STEPS):
        change = torch.zeros(shape).flatten().scatter(0, mask, values).view(shape)
        logits, edits = run(own, change)
        drawn = [loose[i] for i in torch.randperm(len(loose), generator=generator)[: config.negatives]]
        _, quiet = run(lm.encode([*drawn, *hard], pad="right"), change)
        wanted = torch.tensor([t for row in rows for t in row.targets])
        nll = torch.nn.functional.cross_entropy(logits[read_mask(own, rows)].float(), wanted)
        loss = nll + config.margin_weight * margin_loss(quiet, edits, config.alpha, config.beta, config.gamma)
        if step == STEPS - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
    return values.detach(), time.perf_counter() - started


def frozen(lm: LM, layer: int, config: Config, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The same by the library, texts frozen afresh."""
    texts = contexts(lm, per_length=config.contexts, seed=config.seed)
    started = time.perf_counter()
    rows = Rows(lm, layer, [rewrite_row(lm, FACT, context=text, sink=False) for text in ("", *texts)])
    negatives = inputs_of(lm, layer, pool(config.pool, seed=config.seed))
    hard = inputs_of(lm, layer, near(FACT, subjects(), config.near, seed=config.seed))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    start = torch.zeros(lm.adapter.d_model, lm.adapter.d_mlp)
    found = train(start, mask, rows, len(rows.rows), negatives, hard, None, None, config, generator, lambda step: None)
    return found.values, time.perf_counter() - started


def forward_seconds(lm: LM, batch, repeats: int = 12) -> float:
    """The fastest of several forwards."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        lm.forward(batch, read=batch.last)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = options_of(__doc__)
    options = parse(parser)
    lm = LM.from_pretrained(options.model)
    settings = with_preset(lm.adapter, "wise", {}) | {"steps": STEPS, "stop_nll": 0.0, "replay": 0}
    config = build(Config, settings, "wise")
    layer = memory_layer(lm.adapter, config.layer)
    mask = mask_of((lm.adapter.d_model, lm.adapter.d_mlp), config.density, config.seed, 0)
    contexts(lm, per_length=config.contexts, seed=config.seed)
    fast_values, fast = frozen(lm, layer, config, mask)
    plain_values, plain = plainly(lm, layer, config, mask)
    same = float(torch.nn.functional.cosine_similarity(fast_values, plain_values, dim=0))
    print(f"{STEPS} steps at layer {layer}: full forwards {plain:.1f} s, frozen rows {fast:.1f} s (texts included)")
    print(f"{plain / fast:.1f} times faster; cosine of the changes {same:.5f}")
    batch = lm.encode(["The river runs past the old town. " * 40] * 8)
    batch = pad_rows([row[:128].tolist() for row in batch.ids])
    base = forward_seconds(lm, batch)
    lm.edit(FACT, "wise", steps=3)
    (routed,) = lm.routes.layers.values()
    routed.force = "main"
    again = forward_seconds(lm, batch)
    print(f"forward of {tuple(batch.ids.shape)} tokens: {base:.3f} s, with a side memory {again:.3f} s")
    print(f"ratio {again / base:.3f}")
    write(
        "wise",
        {"full_s": plain, "frozen_s": fast, "speed_up": plain / fast, "cosine": same, "forward_ratio": again / base},
    )


if __name__ == "__main__":
    main()
