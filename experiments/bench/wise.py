"""The side memory of WISE: training on frozen rows against full forwards, and what routing adds to a forward pass.

    python experiments/bench/wise.py

Both trainings take the same rows, steps, mask and margins for one fact; the plain one runs every block for every row,
the irrelevant texts included, and takes logits everywhere. The forward pass is the prefill of eight rows of 128 tokens
that no bank answers, with one bank in force, with ten and with a hundred, against the same model without any; the four
take turns. Tokens that are generated afterwards are not asked again.
"""

from __future__ import annotations

import time

import torch
from common import Row, beside, interleaved, options_of, parse, report, write

from editlab import LM, Fact
from editlab.config import build
from editlab.edits.irrelevant import near, pool, subjects
from editlab.edits.keys import contexts
from editlab.edits.methods.wise import Config, _own_rows
from editlab.edits.preserve import covariances
from editlab.edits.presets import with_preset
from editlab.edits.settings import memory_layer
from editlab.edits.side_metric import factor_of
from editlab.edits.side_training import Quiet, Rows, Unknown, inputs_of, margin_loss, train
from editlab.hooks.batch import pad_rows
from editlab.memories.kinds.wise import Layer, mask_of
from editlab.rows import read_mask

FACT = Fact(prompt="The capital of {} is", subject="France", target_new="Rome")
STEPS = 10


def plainly(lm: LM, layer: int, config: Config, covariance: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """The change and the seconds of `STEPS` steps with full forwards."""
    started = time.perf_counter()
    rows = _own_rows(lm, FACT, config)
    pivots = [row.subject if config.whiten else 0 for row in rows]
    own = pad_rows([row.ids for row in rows], pivots=pivots, prompts=[row.reads[0] + 1 for row in rows])
    hard = near(FACT, subjects(), config.near, seed=config.seed)
    loose = pool(config.pool, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    shape = (lm.adapter.d_model, lm.adapter.d_mlp)
    factor = None if covariance is None else factor_of(covariance, inputs_of(lm, layer, hard).x, [])
    unknown = Unknown(torch.zeros(shape), mask_for(config, shape), factor)
    adam = torch.optim.Adam([unknown.values], lr=config.lr)
    ref = lm.adapter.down(lm.model, layer)
    weight = ref.oriented(lm.model.get_parameter(ref.name).detach())

    def run(batch, change, first=0):
        """Logits, and the indicators; the change answers from column `first` on."""
        seen = {}

        def add(module, args, output):
            seen["added"] = args[0] @ change.T
            seen["plain"] = args[0] @ weight.T
            return output + seen["added"] * (torch.arange(batch.width) >= first)[:, None]

        handle = lm.model.get_submodule(lm.adapter.layers[layer].down).register_forward_hook(add)
        try:
            logits = lm.model(batch.ids, attention_mask=batch.mask).logits
        finally:
            handle.remove()
        keep = batch.mask.bool()
        if batch.ends is not None:
            keep = keep & (torch.arange(batch.width) < batch.ends[:, None])
        added, plain = (x.norm(dim=-1) for x in (seen["added"], seen["plain"]))
        if config.pooling == "max":
            each = added / plain.clamp(min=1e-12) if config.indicator == "relative" else added
            return logits, torch.where(keep, each, 0).amax(1)
        return logits, (added * keep).sum(1) / ((plain if config.indicator == "relative" else 1) * keep).sum(1)

    for step in range(STEPS):
        change = unknown.change
        drawn = 1 + torch.randperm(len(rows) - 1, generator=generator)[: config.rows]
        chosen = torch.cat([torch.zeros(1, dtype=torch.long), drawn])
        torch.randperm(0, generator=generator)
        batch = own.rows(chosen)
        logits, edits = run(batch, change, max(pivots))
        texts = [loose[i] for i in torch.randperm(len(loose), generator=generator)[: config.negatives]]
        _, quiet = run(lm.encode([*texts, *hard], pad="right"), change)
        some = [rows[i] for i in chosen.tolist()]
        wanted = torch.tensor([t for row in some for t in row.targets])
        nll = torch.nn.functional.cross_entropy(logits[read_mask(batch, some)].float(), wanted)
        loss = nll + config.margin_weight * margin_loss(quiet, edits, config.alpha, config.beta, config.gamma)
        if step == STEPS - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
    return unknown.change.detach(), time.perf_counter() - started


def mask_for(config: Config, shape: tuple[int, int]) -> torch.Tensor:
    return mask_of(shape, config.density, config.seed, 0, rows=config.mask == "rows")


def frozen(lm: LM, layer: int, config: Config, covariance: torch.Tensor | None) -> tuple[torch.Tensor, float, float]:
    """The same by the library, texts frozen afresh; and the part of the seconds that later edits do not spend again."""
    started = time.perf_counter()
    own = _own_rows(lm, FACT, config)
    rows = Rows(lm, layer, own, from_subject=config.whiten)
    before_pool = time.perf_counter()
    negatives = inputs_of(lm, layer, pool(config.pool, seed=config.seed))
    pooled = time.perf_counter() - before_pool
    hard = inputs_of(lm, layer, near(FACT, subjects(), config.near, seed=config.seed))
    nothing = negatives.some(torch.arange(0))
    shape = (lm.adapter.d_model, lm.adapter.d_mlp)
    factor = None if covariance is None else factor_of(covariance, hard.x, [])
    unknown = Unknown(torch.zeros(shape), mask_for(config, shape), factor)
    quiet = Quiet(negatives, hard, nothing, nothing)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    train(unknown, rows, len(own), quiet, config, generator, lambda step: None)
    return unknown.change.detach(), time.perf_counter() - started, pooled


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parse(parser)
    lm = LM.from_pretrained(options.model, device=options.device)
    settings = with_preset(lm.adapter, "wise", {}) | {"steps": STEPS, "stop_nll": 0.0, "replay": 0}
    config = build(Config, settings, "wise")
    layer = memory_layer(lm.adapter, config.layer)
    covariance = covariances(lm, [layer], config)[layer] if config.whiten else None
    contexts(lm, per_length=config.contexts, seed=config.seed)
    fast_change, fast, pooled = frozen(lm, layer, config, covariance)
    plain_change, plain = plainly(lm, layer, config, covariance)
    same = float(torch.nn.functional.cosine_similarity(fast_change.flatten(), plain_change.flatten(), dim=0))
    print(f"{STEPS} steps at layer {layer}: full forwards {plain:.1f} s, frozen rows {fast:.1f} s (texts included)")
    print(f"{plain / fast:.1f} times faster; cosine of the changes {same:.5f}")
    print(f"irrelevant texts, frozen once for all edits: {pooled:.1f} s; {plain / (fast - pooled):.1f} times without")
    batch = lm.encode(["The river runs past the old town. " * 40] * 8)
    batch = pad_rows([row[:128].tolist() for row in batch.ids])
    edited = {1: lm.fork(), 10: lm.fork(), 100: lm.fork()}
    path = lm.adapter.layers[layer].down
    for banks, view in edited.items():
        view.edit(FACT, "wise", steps=3)
        (one,) = view.routes.layers.values()
        module = view.model.get_submodule(path)
        many = Layer(module, one.banks * banks, one.routing, torch.nn.functional.silu)
        view.routes.set({path: many}, f"{banks} banks")
    work = {"no bank": lambda: lm.forward(batch, read=batch.last)}
    for banks, view in edited.items():
        work[f"banks: {banks}"] = lambda view=view: view.forward(batch, read=batch.last)
    for view in edited.values():
        view.forward(batch, read=batch.last)
        assert (view.routes.last[path].chosen == -1).all(), "a bank answers"
    print(f"forward of {tuple(batch.ids.shape)} tokens")
    rounds = interleaved(work, options.rounds)
    forwards = report(rounds, "no bank")
    training, same_as = f"WISE: {STEPS} steps of ", f"cosine {same:.5f}"
    does = "the others run the same forward, and then ask which bank answers"
    write(
        "wise",
        {
            "full_s": plain,
            "frozen_s": fast,
            "speed_up": plain / fast,
            "speed_up_of_later_edits": plain / (fast - pooled),
            "cosine": same,
            "forward": forwards,
        },
        [
            Row(f"{training}a first edit", "full forwards", fast, plain, agrees=same_as),
            Row(f"{training}a later edit", "full forwards", fast - pooled, plain, agrees=same_as),
            *(beside(f"WISE: a prefill, banks: {n}", rounds, f"banks: {n}", "no bank", why=does) for n in edited),
        ],
    )


if __name__ == "__main__":
    main()
