"""Behaviour, head maps, pruning and flow on a model that knows facts and never believes a context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conflict_items import known_items, made_items
from scipy import stats
from tiny_lm import make_lm

from editlab import LM
from editlab.data.conflicts import cases_of_relation
from editlab.errors import ConfigError
from editlab.evaluation.statistics import Estimate, Paired
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts import heads as head_module
from editlab.probes.conflicts.behaviour import probe
from editlab.probes.conflicts.flow import flow
from editlab.probes.conflicts.heads import HeadMap, HeadSettings, map_heads
from editlab.probes.conflicts.items import Items, ItemSettings
from editlab.probes.conflicts.prune import PruneSettings, means_of, prune
from editlab.probes.conflicts.prune_controls import random_sets
from editlab.probes.conflicts.prune_costs import Prose
from editlab.probes.conflicts.prune_results import RANDOM, Pruning
from editlab.probes.conflicts.rates import by_subject, moved, rates
from editlab.probes.conflicts.readout import Answers, Prompts, judged
from editlab.probes.conflicts.transfer import Transfer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LM]:
    patch = pytest.MonkeyPatch()
    patch.setenv("EDITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 4)
    yield LM.from_pretrained("factworld-llama")
    patch.undo()


@pytest.fixture(scope="module")
def items(world: LM) -> Items:
    return known_items(world, subjects=24)


@pytest.fixture(scope="module")
def heads(world: LM, items: Items) -> HeadMap:
    return map_heads(world, items.split("discovery"))


def answers_of(said: list[int], ld: list[float], subjects: str) -> Answers:
    n = len(said)
    return Answers(
        np.array(said), np.array(said), np.array(ld), np.zeros(n), np.ones(n), np.full(n, 2), tuple(subjects)
    )


def test_rates_add_up_and_rest_on_subjects() -> None:
    found = rates("x", answers_of([1, 1, 2, 3], [1.0, 2.0, -1.0, -3.0], "aabc"))
    assert [found.memory.mean, found.context.mean, found.other.mean] == [1 / 3] * 3 and found.memory.n == 3
    assert found.memorization_ratio == pytest.approx(0.5) and found.difference.mean == pytest.approx((1.5 - 1 - 3) / 3)
    none = rates("x", answers_of([3, 3], [0, 0], "ab"))
    assert none.memorization_ratio is None and none.other.mean == 1
    assert by_subject([1, 0, 1, 1], "abab").tolist() == [1.0, 0.5]
    after = answers_of([2, 2, 2, 2], [0, 0, 0, 0], "aabc")
    assert moved(answers_of([1, 1, 2, 3], [0, 0, 0, 0], "aabc"), after, "context").difference.mean == pytest.approx(
        2 / 3
    )


def test_places_of_a_transfer_are_corrected_for_their_number() -> None:
    same = rates("x", answers_of([1, 2], [0, 0], "ab"))
    rise = Estimate(0.1, 0.0, 0.2, 20)
    p = [0.01, 0.04, 0.2, 0.5]
    table = Transfer("context", tuple((str(x), same, same, Paired(rise, x)) for x in p), ()).to_pandas()
    assert table["p"].tolist() == p and table["q"].tolist() == pytest.approx([0.04, 0.08, 0.8 / 3, 0.5])
    assert Transfer("context", (), ()).to_pandas().columns.tolist() == table.columns.tolist()


def test_a_fact_world_answers_from_memory_whatever_its_context_says(world: LM) -> None:
    found = probe(world, cases_of_relation("capital"), ItemSettings(subjects=20), formats=["reversed"])
    table = found.to_pandas().set_index("condition")
    assert list(table.index) == ["closed-book", "substitution", "agreeing", "reversed", "irrelevant"]
    assert np.allclose(table[["memory", "context", "other"]].sum(axis=1), 1)
    assert table.loc["closed-book", "memory"] == 1 and table.loc["substitution", "memory"] > 0.9
    assert (table["memory_low"] <= table["memory"]).all() and found.popularity is not None
    assert "from memory" in found.headline and found.headline in found._repr_html_()


def test_reading_from_a_frozen_layer_is_reading_from_the_start(world: LM, items: Items) -> None:
    prompts = Prompts(world, [item.ids for item in items.items], batch_tokens=200)
    gains = HeadGains.pruning([(4, 5), (5, 1)])
    whole = prompts.every(gains)
    prompts.freeze(4)
    assert torch.allclose(prompts.every(gains), whole, atol=1e-4)
    assert torch.equal(prompts.every(HeadGains({})), prompts.every(None))  # pruning no head changes no bit
    low = HeadGains.pruning([(0, 1)])
    assert not torch.allclose(prompts.every(low), prompts.every(None), atol=1e-2)  # below what is frozen
    fork = world.fork()
    fork.prune_heads([(4, 5), (5, 1)])
    kept = judged(Prompts(fork, [item.ids for item in items.items]).every(), items)
    assert np.allclose(kept.difference, judged(whole, items).difference, atol=1e-3)


def test_recall_heads_are_found_and_called_so(world: LM, heads: HeadMap) -> None:
    top = heads.ranked("memory")[:4]
    assert all(layer in (4, 5) for layer, _ in top)  # measured: 4.4 to 4.7, one key-value group
    roles = [heads.role(head) for head in top]  # seven subjects name few of 48 heads, and nothing else than recall
    assert "recall" in roles and set(roles) <= {"recall", ""}
    assert heads.reliability > 0.8 and heads.n_subjects == 7
    table = heads.to_pandas()
    assert len(table) == heads.mean.size and table["score"].abs().is_monotonic_decreasing
    assert (table["kv_group"] == table["number"] // 4).all()
    assert table.loc[0, "score"] == pytest.approx(table.loc[0, "S_both"])
    assert not set(heads.ranked("memory")) & set(heads.ranked("context"))


def map_of(scores: dict[str, np.ndarray]) -> HeadMap:
    return HeadMap(scores, None, None, 36, 3, HeadSettings(), "capital", "substitution", "made")


def test_noise_names_no_head_more_often_than_one_map_in_twenty() -> None:
    rng = np.random.default_rng(0)
    named = [map_of({"both": rng.normal(size=(12, 30, 9))}).is_named().sum() for _ in range(100)]
    assert np.mean([n > 0 for n in named]) <= 0.1 and np.mean(named) < 0.2  # two standard errors name 14 heads a map


def test_heads_with_an_effect_are_named_among_many_without_one() -> None:
    rng = np.random.default_rng(1)
    scores = {name: rng.normal(size=(12, 30, 9)) for name in ("both", "subject", "context")}
    planted = [(23, 4), (20, 0), (11, 1)]
    for layer, head in planted:
        scores["both"][:, layer, head] += 4
        scores["subject"][:, layer, head] += 4
        scores["context"][:, layer, head] *= 0.1
    scores["both"][:, 5, 5] = np.nan  # passed over by a gradient pass
    found = map_of(scores)
    table = found.to_pandas().set_index("head")
    p = stats.ttest_1samp(scores["both"].reshape(12, -1), 0).pvalue
    q = stats.false_discovery_control(np.nan_to_num(p, nan=1.0))
    assert found.q_values["both"].ravel() == pytest.approx(q)
    assert all(found.is_named()[at] and found.role(at) == "recall" for at in planted)
    assert found.is_named().sum() == 3 and not found.is_named()[5, 5]
    assert table.loc["23.4", "q"] < 0.05 and "3 of 270 heads named (5 % false discoveries)" in found.headline
    one = map_of({"both": scores["both"][:1]})
    assert not one.is_named().any() and (one.q_values["both"] == 1).all()  # one subject has no spread


def test_a_gradient_pass_first_patches_both_ends_and_spot_checks_the_rest(
    world: LM, items: Items, heads: HeadMap
) -> None:
    found = map_heads(world, items.split("discovery"), HeadSettings(exact=False))
    patched = ~np.isnan(found.scores["both"][0])
    assert patched.sum() == 2 * round(0.05 * 48) + head_module.SPOT_CHECKS and found.missed is not None
    assert np.allclose(found.mean[patched], heads.mean[patched], atol=1e-6)
    assert found.gradient is not None and np.array_equal(found.mean[~patched], found.gradient[~patched])


@pytest.fixture(scope="module")
def pruned(world: LM, items: Items, heads: HeadMap) -> Pruning:
    return prune(world, items, heads, PruneSettings(controls=4, grid=(1, 4, 9)))


def test_pruning_recall_heads_takes_memory_away_and_random_heads_do_not(
    world: LM, items: Items, heads: HeadMap, pruned: Pruning
) -> None:
    assert [row.k for row in pruned.rows] == [1, 4, 9]
    assert pruned.rows[1].heads == tuple(heads.ranked("memory")[:4])
    assert pruned.rows[2].rates.memory.mean < pruned.rows[0].rates.memory.mean - 0.3
    assert pruned.rows[2].recall < 0.8 and not pruned.rows[2].safe  # what it takes is recall itself
    table = pruned.to_pandas().set_index("condition")
    assert table.loc["unpruned", "memory"] > 0.9 and table.loc["closed-book", "memory"] == 1
    best = f"K={pruned.best.k}"
    assert table.loc[best, "memory"] < 0.8 and pruned.costs[pruned.best.k]["kl"] > 0
    random = next(c for c in pruned.controls if c.name.startswith("random"))
    assert len(random.rises) == 4
    # The same heads by hand give the same numbers.
    test = items.split("test")
    by_hand = judged(Prompts(world, [i.ids for i in test.items]).every(HeadGains.pruning(pruned.best.heads)), test)
    assert rates(best, by_hand).memory.mean == pytest.approx(table.loc[best, "memory"])
    assert "random heads" in pruned.headline


def test_a_safe_k_keeps_recall_and_is_chosen_among_those_only(world: LM, items: Items, heads: HeadMap) -> None:
    strict = prune(world, items, heads, PruneSettings(controls=0, grid=(9,), min_recall=1, max_perplexity=1))
    assert strict.safe is None and "no K keeps recall" in strict.headline
    loose = prune(world, items, heads, PruneSettings(controls=0, grid=(9,), min_recall=0, max_perplexity=99))
    assert loose.safe == loose.best
    with pytest.raises(ConfigError, match="fewer than any K"):
        prune(world, items, heads, PruneSettings(grid=(500,)))


def test_means_in_place_of_heads(world: LM, items: Items, pruned: Pruning, heads: HeadMap) -> None:
    found = prune(world, items, heads, PruneSettings(ablation="mean", controls=0, grid=(4,)))
    assert found.best.heads == pruned.rows[1].heads and found.best.log_p != pruned.rows[1].log_p
    assert found.random is None and "random heads not tried" in found.headline
    assert not any("random" in trace.name for trace in found.plot().data)


def test_controls_are_replaced_by_what_the_chosen_heads_are(world: LM, items: Items, heads: HeadMap) -> None:
    settings = PruneSettings(ablation="mean", controls=2, grid=(4,))
    found = prune(world, items, heads, settings)
    (wrong,) = next(c for c in found.controls if "wrong sign" in c.name).rises
    chosen, test = heads.ranked("context")[:4], items.split("test")
    prompts = Prompts(world, [i.ids for i in test.items])

    def share(gains: HeadGains) -> float:
        return rates("", judged(prompts.every(gains), test)).context.mean - found.base.context.mean

    by_mean = HeadGains.pruning(chosen, means_of(world, items, chosen, settings))
    assert wrong == pytest.approx(share(by_mean))
    assert not np.allclose(prompts.every(by_mean), prompts.every(HeadGains.pruning(chosen)), atol=1e-3)


def test_random_sets_have_as_many_heads_in_every_layer() -> None:
    heads = [(2, 0), (2, 1), (4, 3)]
    for chosen in random_sets(heads, 4, 10, 0):
        assert sorted(layer for layer, _ in chosen) == [2, 2, 4] and not set(chosen) & set(heads)
    (full,) = random_sets([(1, h) for h in range(3)], 4, 1, 0)
    assert len(set(full)) == 3 and (1, 3) in full  # there are not enough others
    assert random_sets(heads, 4, 3, 0) == random_sets(heads, 4, 3, 0) != random_sets(heads, 4, 3, 1)


def test_prose_costs_nothing_without_pruning(world: LM) -> None:
    prose = Prose(world)
    assert prose.cost(HeadGains({})) == {"perplexity": 1.0, "kl": 0.0} and prose.tokens == 512


def by_hand(lm: LM, item: Any, patch: Any) -> float:
    batch = lm.encode(item.prompt)
    with lm.session() as s, torch.no_grad():
        patch(s)
        logits = s.run(batch, read=batch.last).logits[0]
    return float(logits[item.tok_mem] - logits[item.tok_ctx])


@pytest.mark.parametrize("family", ["llama", "gptj", "falcon"])
def test_flow_is_what_full_forwards_give(family: str) -> None:
    lm = make_lm(family)
    made = tuple(made_items(lm))
    items = Items(made, {}, 3, 3, (0, 1), ItemSettings(), "file", lm.name)
    for place, at in (("last", -1), ("all", None)):
        found = flow(lm, items, place=place, window=1)  # type: ignore[arg-type]
        for i, item in enumerate(made):
            base = by_hand(lm, item, lambda s: None)
            for layer in range(3):
                out = by_hand(lm, item, lambda s: s.patch("mlp_out", layer, torch.zeros_like, at=at))  # noqa: B023
                assert found.knockout["mlp"][i, layer] == pytest.approx(out - base, abs=1e-4)
            assert found.lens[i, -1, 1] == pytest.approx(base, abs=1e-4)
    assert bool(found.cut) == (family != "falcon")
    if found.cut:

        def blind(part: torch.Tensor) -> torch.Tensor:
            part = part.clone()
            part[:, :, -1, 3:4] = float("-inf")
            return part

        base = by_hand(lm, made[0], lambda s: s.patch("scores", 0, lambda part: part))
        out = by_hand(lm, made[0], lambda s: s.patch("scores", 1, blind))
        assert found.cut["obj_ctx"][0, 1] == pytest.approx(out - base, abs=1e-4)
        assert np.isfinite(found.cut["rest"]).all() and np.abs(found.cut["rest"]).max() > 1e-3
    assert "largest changes of LD" in found.headline and found.to_pandas()["n"].eq(3).all()


def test_a_window_has_as_many_layers_as_it_says() -> None:
    lm = make_lm("llama")
    items = Items(tuple(made_items(lm)), {}, 3, 3, (0, 1), ItemSettings(), "file", lm.name)
    one, two, three = (flow(lm, items, window=n).cut["rest"] for n in (1, 2, 3))
    assert np.allclose(two[:, -1], one[:, -1], atol=1e-5)  # the last layer has none above it
    assert np.allclose(two[:, 0], three[:, 0], atol=1e-5) and not np.allclose(two[:, 1], three[:, 1], atol=1e-3)


def test_figures_show_the_numbers(world: LM, items: Items, heads: HeadMap, pruned: Pruning) -> None:
    pytest.importorskip("plotly", reason="figures need the extra 'app' or 'notebook'")
    from editlab.viz.conflicts import conflict_shares, head_roles

    heat = heads.plot().data[0]
    assert np.allclose(np.asarray(heat.z), heads.mean.T) and heat.zmin == -heat.zmax
    assert sum(len(trace.x) for trace in head_roles(heads).data) == heads.mean.size
    drawn = {trace.name: trace for trace in pruned.plot().data}
    assert list(drawn["memory"].y) == [row.rates.memory.mean for row in pruned.rows] and drawn["memory"].xaxis == "x"
    # What was chosen, and its controls, stand apart from where it was chosen.
    best = next(row for row in pruned.tested if row.condition == f"K={pruned.best.k}")
    tested, random = drawn["context, test"], drawn[f"{RANDOM}, K={pruned.best.k}"]
    assert (tested.x[0], tested.y[0]) == ("unpruned", pruned.base.context.mean)
    assert (tested.x[1], tested.y[1]) == (best.condition, best.context.mean)
    assert list(random.y) == [pruned.base.context.mean + rise for rise in pruned.random.rises]
    assert {tested.xaxis, random.xaxis} == {"x2"} and not pruned.plot().layout.shapes
    bars = conflict_shares([pruned.base, pruned.ceiling])
    assert [t.name for t in bars.data] == ["memory", "context", "other"]
    assert len(flow(world, items.split("validation")).plot().data) == 9
