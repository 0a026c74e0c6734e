"""Composition scores: equal to the dense products that they stand for, and what follows from their definition."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import psutil
import pytest
import torch
from planted import Matrices
from scipy import stats
from torch import Tensor

from editlab.errors import RequestError
from editlab.probes.channels.composition import Composition, component_scores, compose, cosines
from editlab.probes.channels.factors import Factors, degenerate, shares
from editlab.probes.channels.nulls import Tail, adjusted_top, isotropic, p_cosine
from editlab.probes.channels.pairs import pair_svd, projection_kernel
from editlab.probes.channels.parts import MODES, Channel, Mode, Part
from editlab.probes.channels.scan import Config, scan_factors
from editlab.viz.channels import composition_map, writers_map

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def dense(m: Matrices, mode: Mode, a: tuple[int, int], b: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """OV of the writer and M of the reader, as d x d matrices."""
    ov = m.v[a] @ m.o[a]
    return ov, {"q": m.q[b] @ m.k[b].mT, "k": m.k[b] @ m.q[b].mT, "v": m.v[b] @ m.o[b]}[mode]


def score(a: Tensor, b: Tensor) -> float:
    return float((a @ b).norm() / (a.norm() * b.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_t4_scores_from_factors_are_those_of_dense_products(mode: Mode, dtype: torch.dtype) -> None:
    m = Matrices.random(0, d=48, e=8, heads=4, skew=0.3, dtype=dtype)
    f = m.factors()
    found = compose([f], mode)
    for a in range(f.n):
        for b in range(f.n):
            at, to = divmod(a, 4), divmod(b, 4)
            if at[0] == to[0]:
                assert np.isnan(found.head[a, b])
                continue
            ov, reader = dense(m, mode, at, to)
            assert found.head[a, b] == pytest.approx(score(ov, reader), abs=TOLERANCE[dtype])
    # Every component of one pair, the best pair of components, and the list of each reader's best.
    u, _, vh = torch.linalg.svd(dense(m, mode, (0, 1), (2, 3))[0])
    reader = dense(m, mode, (0, 1), (2, 3))[1]
    each = [score(torch.outer(u[:, i], vh[i]), reader) for i in range(8)]
    assert component_scores([f], mode, 1, 11) == pytest.approx(each, abs=1e2 * TOLERANCE[dtype])
    left = torch.linalg.svd(reader)[0][:, :8]
    size = (vh[:8] @ left).abs()
    assert np.abs(cosines(f, mode, 1, 11)) == pytest.approx(size.numpy(), abs=1e2 * TOLERANCE[dtype])
    assert found.best[1, 11] == pytest.approx(float(size.max()), abs=1e2 * TOLERANCE[dtype])
    assert tuple(found.best_at[1, 11]) == divmod(int(size.argmax()), 8)
    every = np.concatenate([component_scores([f], mode, a, 11) for a in range(8)])
    assert found.top[11] == pytest.approx(np.sort(every)[::-1][:32], abs=1e-6)
    assert every[found.top_at[11]] == pytest.approx(found.top[11], abs=1e-6)
    assert found.n_forward == 8 * 4 * 12 and found.tail.n == found.n_forward


def test_every_map_is_held_against_the_null_of_what_it_shows() -> None:
    f = Matrices.random(5, layers=6, heads=8, d=64, e=8).factors()  # random heads: nothing is an outlier
    found = scan_factors([f], Config(modes=("q",)))
    for value, level in (("best", "pair"), ("head", "head"), ("excess", "head"), ("p", "head")):
        figure = composition_map(found, "q", value)
        assert f"99.9 % {found.null('q', level).quantile(0.999):.4f}" in figure.layout.title.text
    drawn = composition_map(found, "q").data[0]
    forward = found.forward
    shown, p_head, p_pair = np.asarray(drawn.z), *np.moveaxis(np.asarray(drawn.customdata)[..., 4:], -1, 0)
    for p in (p_head, p_pair):  # with the null of whole heads every best pair would be beyond 99.9 %
        assert (p[forward] < 0.001).mean() < 0.01 and (p[forward] < 0.5).mean() == pytest.approx(0.5, abs=0.06)
    assert (shown[forward] > found.null("q", "head").quantile(0.999)).all()
    # The best component of a head is the largest of many, and so is what it is held against.
    earlier = writers_map(found, Part(5, 3), "q")
    p = np.asarray(earlier.data[0].customdata)[..., 1]
    assert (
        p < 0.05
    ).mean() < 0.2 and f"{found.null('q', 'strongest').quantile(0.999):.3f}" in earlier.layout.title.text
    largest = [component_scores([f], "q", a, b).max() for a, b in np.argwhere(forward.T)]
    assert found.null("q", "strongest").n == len(largest) == forward.sum()
    assert found.null("q", "strongest").quantile(0.9) == pytest.approx(np.quantile(largest, 0.9), abs=2e-3)


def test_a_scan_that_was_saved_without_the_null_of_best_components_has_no_p_for_them() -> None:
    assert np.isnan(Tail().p(np.array([0.1, 0.9]))).all() and np.isnan(Tail().quantile(0.5))
    old = {f.name: None for f in fields(Composition) if f.name != "strongest_tail"}
    assert Composition(**old).strongest_tail.n == 0


def test_t1_t2_t3_scores_do_not_depend_on_scale_basis_or_gauge() -> None:
    m = Matrices.random(1)
    before = {mode: compose([m.factors()], mode) for mode in MODES}
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(96, 96, generator=g, dtype=torch.float64)).Q
    gauge = torch.randn(16, 16, generator=g, dtype=torch.float64) + 4 * torch.eye(16, dtype=torch.float64)
    scaled = Matrices(m.q * 3, m.k * 0.2, m.v * 7, m.o * -0.5)
    turned = Matrices(turn.T @ m.q, turn.T @ m.k, turn.T @ m.v, m.o @ turn)
    gauged = Matrices(m.q @ gauge, m.k @ torch.linalg.inv(gauge).T, m.v @ gauge, torch.linalg.solve(gauge, m.o))
    for other in (scaled, turned, gauged):
        f = other.factors()
        for mode in MODES:
            again = compose([f], mode)
            assert np.nanmax(np.abs(again.head - before[mode].head)) < 1e-10
            assert np.nanmax(np.abs(again.best - before[mode].best)) < 1e-10
            assert np.array_equal(again.top_at, before[mode].top_at)
    one, two = m.factors(), gauged.factors()
    assert (one.v * two.v).sum(-1).abs().min() > 1 - 1e-9 and (one.v - two.v).abs().max() < 1e-7  # signs are fixed


@pytest.mark.parametrize("mode", MODES)
def test_t5_what_is_planted_for_one_way_of_reading_shows_there_alone(mode: Mode) -> None:
    m = Matrices.random(2, d=128)
    writes = m.o[0, 3].mT  # what 0.3 writes: its readers below read exactly that
    {"q": m.q, "k": m.k, "v": m.v}[mode][2, 5] = writes
    scores = {x: compose([m.factors()], x).head[3, 2 * 8 + 5] for x in MODES}
    assert scores[mode] > 0.2
    chance = 1 / np.sqrt(128)
    assert all(abs(scores[x] - chance) < 0.02 for x in MODES if x != mode)


def test_t6_t7_t8_bounds_orthogonal_spaces_and_the_energy_identity() -> None:
    m = Matrices.random(3, d=64, e=8, skew=0.4)
    m.o[0, 0], m.q[1, 0] = m.o[0, 0], m.q[1, 0]
    m.o[0, 0, :, :32] = 0
    m.q[1, 0, 32:] = 0
    f = m.factors()
    for mode in MODES:
        found = compose([f], mode)
        bound = (f.s[:, 0] / f.s.norm(dim=1)).numpy()
        inside = ~np.isnan(found.head)
        assert (found.head[inside] <= np.broadcast_to(bound[:, None], found.head.shape)[inside] + 1e-12).all()
        assert found.best[inside].max() <= 1 + 1e-12 and found.head[inside].min() >= 0
        c = cosines(f, mode, 2, 13)
        energy = (shares(f.s[2]) @ torch.as_tensor(c**2) @ shares(f.reads(mode)[1][13])).item()
        assert found.head[2, 13] ** 2 == pytest.approx(energy, abs=1e-10)
    assert compose([f], "q").head[0, 8] < 1e-12


def test_t9_the_isotropic_null_is_what_random_directions_give() -> None:
    g = torch.Generator().manual_seed(0)
    d, e, n = 24, 6, 5000
    w = shares(torch.linspace(3, 1, e, dtype=torch.float64))
    tau = shares(torch.linspace(2, 0.5, e, dtype=torch.float64))
    a = torch.linalg.qr(torch.randn(n, d, e, generator=g, dtype=torch.float64)).Q
    b = torch.linalg.qr(torch.randn(n, d, e, generator=g, dtype=torch.float64)).Q
    drawn = torch.einsum("i,nij,j->n", w, (a.mT @ b).square(), tau).numpy()
    mean, variance = isotropic(np.array(float(w.square().sum())), np.array(float(tau.square().sum())), d)
    assert drawn.mean() == pytest.approx(mean, rel=0.05) and drawn.var() == pytest.approx(float(variance), rel=0.05)
    cosine = (a[:, :, 0] * b[:, :, 0]).sum(-1).abs().numpy()
    assert stats.kstest(p_cosine(cosine, d), "uniform").pvalue > 0.01


def test_t10_p_is_uniform_where_there_are_no_channels() -> None:
    """Pairs that share a head are no independent draws, so each writer and reader counts once."""
    values = []
    for seed in range(12):
        f = Matrices.random(seed, layers=4, heads=8, d=64, e=8).factors()
        found = scan_factors([f], Config(modes=("q",)))
        tail, forward = found.null("q", "head"), found.forward
        head = found.compositions["q"].head
        values += [
            tail.p(head[a : a + 1, b])[0] for a, b in zip(range(16), range(16, 32), strict=True) if forward[a, b]
        ]
    assert stats.kstest(values, "uniform").pvalue > 0.01 and len(values) == 192


def test_p_values_count_what_the_null_gave() -> None:
    tail = Tail(np.zeros(100, dtype=np.int64))
    tail.add(np.array([0.1, 0.2, 0.205, 0.5]))
    assert tail.p(np.array([0.9, 0.5, 0.2, 0.0])).tolist() == [1 / 5, 2 / 5, 4 / 5, 1.0]
    assert tail.quantile(0.5) == pytest.approx(0.21) and tail.n == 4
    p = np.array([0.001, 0.04, 0.02])
    assert adjusted_top(p, 3) == pytest.approx(stats.false_discovery_control(p))
    assert adjusted_top(p, 100) == pytest.approx([0.1, 1.0, 1.0])


def test_t17_only_earlier_heads_are_listed() -> None:
    found = scan_factors([Matrices.random(4).factors()], Config())
    for level in ("head", "component", "pair"):
        table = found.to_pandas(level, limit=None)
        layers = [
            (Part.parse(a).layer, Part.parse(b).layer) for a, b in zip(table["source"], table["target"], strict=True)
        ]
        assert all(a < b for a, b in layers) and set(table["status"]) == {"weight-only"} and len(table) > 100
    with pytest.raises(RequestError, match="later layers only"):
        Channel(Part(2, 0, 0), Part(2, 1), "q")
    every = scan_factors([Matrices.random(4).factors()], Config(top=4096))
    one = every.to_pandas(target=Part(2, 3), source=Part(0, 1), modes=["k"], limit=None)
    assert set(one["target"]) == {"2.3"} and {s[:3] for s in one["source"]} == {"0.1"} and set(one["mode"]) == {"k"}


def test_t19_equal_singular_values_are_marked_and_pairs_are_indifferent_to_them() -> None:
    assert degenerate(torch.tensor([3.0, 3.0, 1.0, 0.5, 1e-9])).tolist() == [True, True, False, False, True]
    m = Matrices.random(5)
    u, _, vh = torch.linalg.svd(m.v[0, 0] @ m.o[0, 0])
    size = torch.tensor([4.0, 2, 2, *[1 - 0.05 * i for i in range(13)]], dtype=torch.float64)
    m.v[0, 0], m.o[0, 0] = u[:, :16] * size, vh[:16]
    f = m.factors()
    assert f.degenerate_ov[0].nonzero().flatten().tolist() == [1, 2]
    turned = f.v.clone()
    c, s = np.cos(0.7), np.sin(0.7)
    turned[0, 1], turned[0, 2] = c * f.v[0, 1] + s * f.v[0, 2], -s * f.v[0, 1] + c * f.v[0, 2]
    other = Factors(f.s, f.u, turned, f.t, f.p, f.q, f.n_layers, f.n_heads, f.rank)
    one, two = (pair_svd(x, "q", 0, 20) for x in (f, other))
    assert (one.values - two.values).abs().max() < 1e-12 and one.score == pytest.approx(compose([f], "q").head[0, 20])
    assert (one.written[0] @ two.written[0]).abs() > 1 - 1e-10
    assert np.abs(component_scores([f], "q", 0, 20) - component_scores([other], "q", 0, 20))[1:3].max() > 1e-3
    # Its directions are what the dense product has, and its shares are shares.
    ov, reader = dense(m, "q", (0, 0), (2, 4))
    _, sigma, _ = torch.linalg.svd(ov @ reader)
    assert (one.values * ov.norm() * reader.norm() - sigma[:16]).abs().max() < 1e-9
    assert one.rank1_share == pytest.approx(float(shares(sigma)[0])) and 1 <= one.participation <= 16
    assert 0 <= projection_kernel(f, "q", 0, 20) <= 16


def test_t25_memory_does_not_grow_with_the_width_of_heads() -> None:
    """N = 512, e = 32, d = 256: component to head scores alone would take 34 MB, the cosines 1 GB."""
    f = Matrices.random(0, layers=32, heads=16, d=256, e=32, dtype=torch.float32).factors()
    compose([f], "q", top=8)  # what is made once
    process, seen, over = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    found = compose([f], "q", top=8)
    over.set()
    thread.join()
    kept = sum(x.nbytes for x in (found.head, found.best, found.best_at, found.top, found.top_at, found.tail.counts))
    assert kept < 8e6 and len(seen) > 10 and max(seen) - before < 60e6
