"""A channel that was planted is found, and where none is, none is reported beyond the stated rate."""

from __future__ import annotations

import torch
from planted import Matrices, to_lm
from scipy import stats

from editlab.probes.channels.components import component_edit
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.parts import Part
from editlab.probes.channels.scan import Config, scan_factors
from editlab.probes.channels.weights import layer_heads


def test_t11_a_planted_channel_comes_first_in_20_of_20_models_though_no_head_score_shows_it() -> None:
    for seed in range(20):
        m = Matrices.random(seed, skew=0.2)
        source, target = Part(0, seed % 8), Part(1 + seed % 2, (3 * seed) % 8)
        m.plant(source, target, seed)  # 5 % of what the source writes
        m.crowd(Part(0, (seed + 1) % 8), target, 2.0)  # another head speaks to the target along everything it reads
        found = scan_factors([m.factors()], Config())
        best = found.to_pandas("pair", limit=1).iloc[0]
        assert Part.parse(best.source).whole == source and Part.parse(best.target).whole == target, seed
        assert best["mode"] == "q" and best.score > 0.999
        first = found.to_pandas("component", limit=1).iloc[0]
        assert (first.source, first.target, first["mode"]) == (best.source, str(target), "q")
        heads = found.to_pandas("head", modes=["q"], target=target, limit=500)
        assert int(heads.loc[heads["source"] == str(source), "rank"].iloc[0]) > 1
        assert heads.loc[heads["rank1_share"].idxmax(), "source"] == str(source)


def test_random_models_show_no_more_than_the_stated_rate_of_false_positives() -> None:
    for p, level in ((1e-3, "component"), (1e-2, "head"), (1e-2, "pair")):
        outliers = tests = 0
        for seed in range(20):
            f = Matrices.random(100 + seed, layers=4).factors()
            found = scan_factors([f], Config(p=p, rank=4096, top=4096))
            table = found.to_pandas(level, limit=None)
            outliers, tests = outliers + int(table["outlier"].sum()), tests + len(table)
        # Scores that share a head are correlated, which widens the spread of their number: thrice the binomial's.
        expected = p * tests
        assert expected > 10 and outliers <= expected + 3 * 3 * expected**0.5, (level, outliers, expected)
        assert outliers > 0.2 * expected


def test_t12_scaling_the_planted_component_scales_what_the_target_hears() -> None:
    m = Matrices.random(0, layers=3, heads=4, d=32, e=8)
    source, target = Part(0, 1), Part(2, 3)
    m.plant(source, target, 0)
    lm = to_lm(m)
    f = factorise(lm, dtype=torch.float64)
    found = scan_factors([f], Config(modes=("q",)))
    best = found.to_pandas("pair", limit=1).iloc[0]
    assert Part.parse(best.source).whole == source and Part.parse(best.target).whole == target
    heard = f.u[f.index(source), :, Part.parse(best.source).component]
    asked = f.q[f.index(target), :, Part.parse(best.target).component]

    def term(part: Part, alpha: float) -> float:
        """What the target adds to a pre-softmax score where the source reads its component's input."""
        twin = lm.fork()
        if alpha != 1:
            twin.ledger.apply(component_edit(lm, [part], alpha))
        a, b = layer_heads(twin, source.layer, torch.float64), layer_heads(twin, target.layer, torch.float64)
        return float(heard @ a.v[source.head] @ a.o[source.head] @ b.q[target.head] @ b.k[target.head].T @ asked)

    planted = Part.parse(best.source)
    base = term(planted, 1)
    assert abs(base) > 0.1
    assert abs(term(planted, 0)) < 1e-6 * abs(base)
    assert abs(term(planted, 2) / base - 2) < 1e-5
    for i in range(8):
        if i != planted.component:
            assert abs(term(Part(source.layer, source.head, i), 0) / base - 1) < 0.01


def test_the_null_of_a_random_model_is_close_to_the_isotropic_one() -> None:
    f = Matrices.random(7, layers=4, d=64, e=8).factors()
    found = scan_factors([f], Config(modes=("k",))).compositions["k"]
    scores = found.head[~torch.as_tensor(found.head).isnan().numpy()]
    assert abs((scores**2).mean() * 64 - 1) < 0.02
    assert stats.skew(scores) < 1
