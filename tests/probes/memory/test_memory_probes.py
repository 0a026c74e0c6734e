"""What is read from one forward pass, recognition, recall, survival and the fits, against hand computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_lm import make_lm

from editlab.hooks.batch import pad_rows
from editlab.probes.memory.forgetting import FAMILIES, fit_forgetting, named, verdict
from editlab.probes.memory.reading import cue, read
from editlab.probes.memory.recall import continuations, rouge, rouge_l, targets
from editlab.probes.memory.recognition import auc, d_prime, gained, margin, prefers
from editlab.probes.memory.survival import Lifetimes, holm


def rows_of(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    g = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randint(5, 200, (int(torch.randint(8, 15, (1,), generator=g)),), generator=g).tolist())
        for _ in range(n)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reading_is_the_hand_computation_in_float64(family: str) -> None:
    lm = make_lm(family)
    rows = rows_of(12)
    found = read(lm, rows)
    model = lm.on_own_weights().model.double()
    for row, reading in zip(rows, found, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
        nll = -log_p[range(len(row) - 1), row[1:]]
        assert reading.loss == pytest.approx(float(nll.mean()), abs=1e-5)
        assert reading.loss_sum == pytest.approx(float(nll.sum()), abs=1e-4)
        assert reading.target_nll == pytest.approx(float(nll[cue(row) - 1 :].mean()), abs=1e-5)
        assert reading.n_target == len(row) - len(row) // 2 and reading.n_tokens == len(row)
        right = (log_p.argmax(-1)[:-1] == torch.tensor(row[1:]))[cue(row) - 1 :].tolist()
        assert reading.hits == sum(right)
        assert reading.prefix == (right.index(False) if False in right else len(right))


def test_order_and_batches_do_not_matter() -> None:
    lm = make_lm("llama")
    rows = rows_of(20)
    found = read(lm, rows)
    alone = [read(lm, [row])[0] for row in rows]
    backwards = read(lm, rows[::-1], batch_tokens=40)[::-1]
    for a, b, c in zip(found, alone, backwards, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5) and a.loss == pytest.approx(c.loss, abs=1e-5)
        assert a.hits == b.hits == c.hits or min(a.margin, b.margin) < 1e-4


def test_exact_recall_is_what_greedy_decoding_says() -> None:
    lm = make_lm("llama")
    end = lm.tokenizer.eos_token_id
    rows = []
    for row in rows_of(12, seed=3):
        # The model's own continuation of some cues, so that some items are exact.
        half = row[: cue(row)]
        new = lm.generate_ids(pad_rows([half]), len(row) - len(half))[0]
        rows.append((*half, *new) if len(row) % 2 and len(new) == len(row) - len(half) else row)
    found = read(lm, rows)
    assert any(r.exact for r in found) and not all(r.exact for r in found)
    for row, reading in zip(rows, found, strict=True):
        said = lm.generate_ids(pad_rows([row[: cue(row)]]), len(row) - cue(row))[0]
        if reading.margin > 1e-4 and end not in row:
            assert reading.exact == (tuple(said) == row[cue(row) :])
    for said, wanted, reading in zip(continuations(lm, rows, found), targets(lm, rows), found, strict=True):
        if reading.exact:
            assert said == wanted and reading.prefix == reading.n_target


def test_recognition_scores() -> None:
    assert prefers([1, 2, 3], [2, 2, 1]).tolist() == [1, 0.5, 0]
    # Both directions of any pairs give one half, whatever the losses.
    a, b = np.random.default_rng(0).normal(size=(2, 31))
    assert np.concatenate([prefers(a, b), prefers(b, a)]).mean() == 0.5
    assert auc(a, b) == pytest.approx(np.mean([[float(x < y) for y in b] for x in a]))
    assert gained([1, 1], [1, 1], [1, 2], [2, 1]).tolist() == [0, 1]
    assert gained(a, b, a, b).tolist() == [0.5] * 31
    assert d_prime(0.5, 10) == 0
    assert d_prime(1.0, 10) == d_prime(0.95, 10) == pytest.approx(2.326, abs=1e-3)
    assert margin([0, 2], [10, 12]) == pytest.approx(10 / math.sqrt(2))


def test_rouge_by_hand() -> None:
    assert rouge("the cat sat on", "The cat sat down!") == pytest.approx(2 / 3)
    assert rouge("a a a", "a a", 1) == pytest.approx(2 * 2 / 5)
    assert rouge("", "a b") == rouge("x", "x") == 0
    assert rouge_l("the big cat sat", "the cat sat down") == pytest.approx(2 * 3 / 8)
    assert rouge("one two three", "one two three") == rouge_l("one two", "one two") == 1


def test_lifetimes() -> None:
    times = [0, 1, 2, 5]
    alive = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0]])
    found = Lifetimes.of(times, alive)
    assert found.n == 4 and found.share.tolist() == [1, 0.75, 0.25, 0.25] and found.half_life == 2
    # Kaplan and Meier's estimate by SciPy, the survivor censored at the last probe.
    sf = stats.ecdf(stats.CensoredData(uncensored=[2, 1, 2], right=[5])).sf
    assert sf.evaluate(times) == pytest.approx(found.share)
    assert math.isinf(Lifetimes.of(times, np.ones((4, 4))).half_life)
    none = Lifetimes.of(times, np.zeros((4, 4)))
    assert math.isnan(none.half_life) and math.isnan(none.differs_from(found)) and np.isnan(none.share).all()
    low, high = found.half_life_interval(200)
    assert low <= 2 <= high
    # Lifetimes of one item twice over say no more than once.
    twice = Lifetimes.of(times, np.repeat(alive, 2, 0), np.repeat(np.arange(5), 2))
    assert twice.half_life_interval(200) == (low, high) and twice.half_life == 2


def test_the_log_rank_test() -> None:
    times = [0, 1, 2, 5]
    short, long = np.repeat([[1, 0, 0, 0]], 20, 0), np.repeat([[1, 1, 1, 0]], 20, 0)
    assert Lifetimes.of(times, short).differs_from(Lifetimes.of(times, long)) < 1e-4
    assert Lifetimes.of(times, long).differs_from(Lifetimes.of(times, long)) == 1
    # Independent items, one lifetime each: about the p of the large-sample test.
    rng = np.random.default_rng(0)
    steps = np.arange(9)
    ends = [rng.geometric(q, 60) for q in (0.3, 0.2)]
    one, other = (Lifetimes.of(steps, steps[None] < e[:, None], np.arange(60) + 60 * i) for i, e in enumerate(ends))
    data = [stats.CensoredData.right_censored(np.minimum(e, 8), e > 8) for e in ends]
    assert one.differs_from(other) == pytest.approx(stats.logrank(*data).pvalue, abs=0.015)
    # The same facts eight times over (eight streams) are as unsure as once; as independent items they would not be.
    few = [np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]), np.array([[1, 1, 1, 0]] * 4)]
    units = np.repeat(np.arange(4), 8)
    once, often = ([Lifetimes.of(times, np.repeat(x, k, 0), u) for x in few] for k, u in ((1, None), (8, units)))
    assert once[0].differs_from(once[1]) == often[0].differs_from(often[1]) == 2 / 16
    assert holm([0.01, float("nan"), 0.04, 0.03]) == pytest.approx([0.03, float("nan"), 0.06, 0.06], nan_ok=True)


T = np.array([0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100.0])
PLANTED = {
    "log-linear": (0.9, 0.3),
    "power": (0.95, 0.5),
    "exponential": (1.0, 0.05),
    "exponential with floor": (1.0, 0.1, 0.3),
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_fits_recover_what_was_planted(family) -> None:
    planted = PLANTED[family.name]
    noise = np.random.default_rng(0).normal(0, 0.01, (40, T.size))
    items = np.r_[[family.curve(np.maximum(T, 1), *planted)]] + noise
    fits = {f.family: f for f in fit_forgetting(T, items, resamples=30)}
    found = fits[family.name]
    assert list(found.parameters.values()) == pytest.approx(planted, rel=0.05)
    for name, value in zip(family.parameters, planted, strict=True):
        low, high = found.intervals[name]
        assert low < high and low - 0.02 <= value <= high + 0.02
    assert found.held_out < 0.03 and found.r2 > 0.99


def test_aicc_picks_the_planted_family_in_nine_of_ten_draws() -> None:
    rng = np.random.default_rng(1)
    right = dict.fromkeys(("log-linear", "exponential with floor"), 0)
    for _ in range(20):
        for family in FAMILIES:
            if family.name in right:
                y = family.curve(np.maximum(T, 1), *PLANTED[family.name]) + rng.normal(0, 0.01, T.size)
                right[family.name] += fit_forgetting(T, y[None], resamples=0)[0].family == family.name
    assert min(right.values()) >= 18


def lives(times: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, T) items that are there or not, of an exponential with a floor; each item ends once."""
    share = FAMILIES[3].curve(times, 1.0, 1 / times.mean(), 0.3)
    return (np.random.default_rng(seed).uniform(size=(n, 1)) < share).astype(float)


def test_a_family_is_not_named_wrongly_where_aicc_alone_would_be_sure_of_it() -> None:
    seven = np.array([1, 2, 3, 5, 8, 13, 20.0])
    sure, wrong = 0, 0
    for seed in range(40):
        fits = fit_forgetting(seven, lives(seven, 48, seed), resamples=0)
        sure += fits[0].family != "exponential with floor" and fits[1].aicc - fits[0].aicc >= 2
        wrong += named(fits) is not None
    assert sure >= 15 and wrong == 0
    assert "7 times do not tell families apart" in verdict(fits)
    twelve = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100.0])
    names = []
    for seed in range(6):
        fits = fit_forgetting(twelve, lives(twelve, 48, seed), resamples=40, seed=seed)
        names.append(None if named(fits) is None else named(fits).family)
        assert sum(f.selected for f in fits) == pytest.approx(1)
    assert sum(name not in (None, "exponential with floor") for name in names) <= 1


def test_a_family_is_named_where_all_resamples_agree() -> None:
    rng = np.random.default_rng(0)
    y = FAMILIES[3].curve(np.maximum(T, 1), *PLANTED["exponential with floor"])
    fits = fit_forgetting(T, y + rng.normal(0, 0.02, (60, T.size)), resamples=60)
    assert named(fits) is fits[0] and fits[0].family == "exponential with floor" and fits[0].selected >= 0.95
    assert "first in" in verdict(fits) and "not told apart" not in verdict(fits)


def test_noisy_times_weigh_less_and_weights_do_not_depend_on_refits() -> None:
    rng = np.random.default_rng(3)
    y = FAMILIES[2].curve(T, *PLANTED["exponential"])
    # Half of the items are far off at t = 1, where the mean is therefore wrong and known to be unsure.
    items = np.repeat(y[None], 40, 0) + rng.normal(0, 0.005, (40, T.size))
    items[::2, 1] -= 0.8
    by = {n: {f.family: f for f in fit_forgetting(T, items, resamples=n)}["exponential"] for n in (0, 20)}
    assert by[0].parameters == by[20].parameters and by[0].aicc == by[20].aicc
    assert list(by[0].parameters.values()) == pytest.approx(PLANTED["exponential"], rel=0.01)


def test_too_few_times_and_flat_curves_are_not_fitted() -> None:
    assert fit_forgetting([0, 1, 2, 3], np.array([[1, 0.5, 0.2, 0.1]])) == []
    assert fit_forgetting(T, np.ones((4, T.size))) == []
    assert "No curve" in verdict([])
    three = fit_forgetting([0, 1, 2, 3, 5, 8, 13], np.geomspace(1, 0.1, 7)[None], resamples=0)
    assert "exponential with floor" not in [f.family for f in three] and len(three) == 3
