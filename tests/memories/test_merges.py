"""Merges of changes: hand-computed cases, and what each promises."""

from __future__ import annotations

import pytest
import torch

from editlab.memories.merges import MERGES, merge

A = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 1.0]])
B = torch.tensor([[0.0, 5.0, 4.0], [0.0, 1.0, -1.0]])


def test_ties_by_hand() -> None:
    # Alone: kept whole. Same sign: the mean. Opposite signs: the larger one. An exact tie: the positive one.
    expected = torch.tensor([[1.0, 5.0, 3.0], [0.0, -3.0, 1.0]])
    assert torch.equal(merge("sign", [A, B], [0.5, 0.5], 1.0), expected)
    assert torch.equal(merge("ties", [A, B], [0.5, 0.5], 1.0), expected)


def test_ties_trims_first() -> None:
    # The three largest of six: A keeps 2, -3 and both ones, which are equal in size; B keeps 5, 4 and its ones.
    trimmed = merge("ties", [A, B], [0.5, 0.5], 1 / 6)
    assert torch.equal(trimmed, torch.tensor([[0.0, 5.0, 0.0], [0.0, -3.0, 0.0]]))


def test_weights_count_where_several_agree() -> None:
    got = merge("sign", [A, B], [0.25, 0.75], 1.0)
    assert got[0, 2] == pytest.approx(0.25 * 2 + 0.75 * 4)
    assert got[1, 1] == -3 or got[1, 1] == 1  # by the sign of 0.25 * -3 + 0.75 * 1
    assert got[1, 1] == (1 if 0.25 * -3 + 0.75 * 1 >= 0 else -3)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", ["ties", "sign"])
def test_what_is_apart_is_added_up_exactly(name: str, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    owner = torch.randint(n, (8, 9), generator=g)
    values = torch.randn(8, 9, generator=g)
    parts = [torch.where(owner == i, values, 0) for i in range(n)]
    assert torch.equal(merge(name, parts, [1 / n] * n, 1.0), values)


@pytest.mark.parametrize("name", sorted(MERGES))
def test_one_change_alone_stays_as_it_is(name: str) -> None:
    assert torch.equal(merge(name, [A], [1.0], 1.0), A)


@pytest.mark.parametrize("name", [n for n in sorted(MERGES) if n != "slerp"])
def test_the_order_does_not_matter(name: str) -> None:
    # dare draws for each place, so only what it draws from may be exchanged when nothing is dropped.
    assert torch.allclose(merge(name, [A, B], [0.3, 0.7], 1.0), merge(name, [B, A], [0.7, 0.3], 1.0))


@pytest.mark.parametrize("name", sorted(MERGES))
@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_change_counts(name: str, which: int) -> None:
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(4, 5, generator=g) for _ in range(3)]
    other = [*parts]
    other[which] = other[which] * 1.5
    assert not torch.allclose(merge(name, parts, [1 / 3] * 3, 1.0), merge(name, other, [1 / 3] * 3, 1.0))


def test_linear_and_slerp_by_hand() -> None:
    assert torch.allclose(merge("linear", [A, B], [0.25, 0.75], 1.0), 0.25 * A + 0.75 * B)
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    half = merge("slerp", [x, y], [0.5, 0.5], 1.0)
    assert torch.allclose(half, torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert torch.allclose(merge("slerp", [x, x], [0.5, 0.5], 1.0), x)


def test_dare_keeps_the_expectation_and_its_seed() -> None:
    ones = torch.ones(200, 200)
    a = merge("dare_linear", [ones], [1.0], 0.25, seed=1)
    assert set(a.unique().tolist()) == {0.0, 4.0}
    assert float(a.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(a, merge("dare_linear", [ones], [1.0], 0.25, seed=1))
    assert not torch.equal(a, merge("dare_linear", [ones], [1.0], 0.25, seed=2))
