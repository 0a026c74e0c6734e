"""The value optimiser: the same as the plain algorithm, only cheaper."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES
from reference import optimise_plainly
from tiny_lm import make_lm

from editlab.edits.keys import states_at
from editlab.edits.values import Target, optimise, optimise_all, site_of_shift
from editlab.facts import Fact
from editlab.lm import LM
from editlab.rows import Row, essence_row, rewrite_row

FACT = Fact(prompt="The capital of {} is", subject="Vinland", target_new="Rome now")
OTHER = Fact(prompt="{} was written by", subject="The long book", target_new="Ada")
LAYER = 1


def settings(**changes: float) -> SimpleNamespace:
    base = {"steps": 8, "lr": 0.2, "clamp": 2.0, "decay": 0.5, "kl_factor": 0.5, "stop_loss": 0.0}
    return SimpleNamespace(**(base | changes))


def ours(**changes: float) -> SimpleNamespace:
    return SimpleNamespace(**vars(settings(**changes)), steps_on_top=0)


def target(lm: LM, fact: Fact, layer: int = LAYER) -> Target:
    rows = [rewrite_row(lm, fact, sink=True), rewrite_row(lm, fact, sink=False)]
    rows += [rewrite_row(lm, fact, context=c, sink=True) for c in ("Because of it", "You see a thing here")]
    states = states_at(lm, layer, rows)
    reference = states.hidden[0] if site_of_shift(lm, layer)[0] == "resid_pre" else states.value[0]
    return Target(tuple(rows), essence_row(lm, fact, sink=True), reference.float())


def plain_rows(t: Target) -> list[tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]]:
    rows: list[Row] = [*t.rows, *([t.essence] if t.essence else [])]
    return [(r.ids, r.index, r.reads, r.targets) for r in rows]


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("layer", [0, 1])
def test_the_cone_gives_the_plain_algorithm_s_shift(family, layer):
    lm = make_lm(family)
    t = target(lm, FACT, layer)
    fast = optimise(lm, layer, [t], ours())[0]
    paths = lm.adapter.layers[layer]
    at_block = site_of_shift(lm, layer)[0] == "resid_pre"
    module = lm.model.get_submodule(paths.block if at_block else paths.down)
    plain, losses = optimise_plainly(lm.model, module, plain_rows(t), t.reference, **vars(settings()))
    assert len(fast.losses) == 8 and fast.losses[-1] < fast.losses[0]
    assert fast.losses == pytest.approx(losses, rel=1e-4, abs=1e-5)
    assert (fast.delta - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "phi"])
def test_a_shift_at_the_mlp_output_is_the_same_shift(family):
    """In pre-norm models the MLP's output is added to the stream unscaled."""
    lm = make_lm(family)
    t = target(lm, FACT)
    paths = lm.adapter.layers[LAYER]
    shifts = [
        optimise_plainly(lm.model, lm.model.get_submodule(path), plain_rows(t), t.reference, **vars(settings()))[0]
        for path in (paths.block, paths.down)
    ]
    assert (shifts[0] - shifts[1]).norm() <= 1e-4 * shifts[0].norm()


def test_targets_in_one_batch_do_not_interact():
    lm = make_lm("llama")
    targets = [target(lm, FACT), target(lm, OTHER)]
    together = optimise(lm, LAYER, targets, ours())
    for value, t in zip(together, targets, strict=True):
        alone = optimise(lm, LAYER, [t], ours())[0]
        assert value.losses == pytest.approx(alone.losses, rel=1e-4, abs=1e-5)
        assert (value.delta - alone.delta).norm() <= 1e-3 * alone.delta.norm()


def test_a_target_that_is_done_is_held_still():
    lm = make_lm("llama")
    targets = [target(lm, FACT), target(lm, OTHER)]
    alone = [optimise(lm, LAYER, [t], ours())[0] for t in targets]
    # A threshold that one of the two passes on its way.
    threshold = max(alone[0].losses[4], alone[1].losses[-1] - 1e-3)
    stopped = optimise(lm, LAYER, [targets[0]], ours(stop_loss=threshold))[0]
    assert len(stopped.losses) < 8
    together = optimise(lm, LAYER, targets, ours(stop_loss=threshold))[0]
    assert len(together.losses) == len(stopped.losses)
    assert (together.delta - stopped.delta).norm() <= 1e-3 * stopped.delta.norm()


def test_the_shift_stays_in_its_ball_and_says_when_it_touches_it():
    lm = make_lm("llama")
    t = target(lm, FACT)
    tight = optimise(lm, LAYER, [t], ours(clamp=0.05))[0]
    assert tight.delta.norm() <= 0.05 * t.reference.norm() * (1 + 1e-5)
    assert tight.clamped
    assert not optimise(lm, LAYER, [t], ours(clamp=100.0))[0].clamped


def test_one_step_is_no_shift_and_the_first_loss_is_the_target_s_nll():
    lm = make_lm("llama")
    value = optimise(lm, LAYER, [target(lm, FACT)], ours(steps=1))[0]
    assert value.delta.abs().max() == 0
    assert value.losses[0] == pytest.approx(value.nlls[0], abs=1e-6)


def test_nothing_is_left_behind():
    lm = make_lm("llama")
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    optimise(lm, LAYER, [target(lm, FACT)], ours())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()) == hooks
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and not p.requires_grad


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_batches_of_any_size_give_each_target_its_own_value(max_tokens):
    lm = make_lm("llama")
    facts = [FACT, OTHER, FACT.model_copy(update={"target_new": "a longer answer than that"})]
    targets = [target(lm, fact) for fact in facts]
    together = optimise_all(lm, LAYER, targets, ours(), max_tokens=max_tokens)
    for t, value in zip(targets, together, strict=True):
        alone = optimise(lm, LAYER, [t], ours())[0]
        assert (value.delta - alone.delta).norm() <= 1e-4 * alone.delta.norm()
        assert value.losses == pytest.approx(alone.losses, rel=1e-4)
