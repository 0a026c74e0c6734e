"""The closed form's algebra, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editlab.edits.solver import Metric, solve
from editlab.errors import EditFailed


def spd(d: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(4 * d, d, generator=generator, dtype=torch.float64)
    return x.T @ x / len(x)


def problem(seed: int, d_k: int = 12, d_v: int = 5, n: int = 3):
    g = torch.Generator().manual_seed(seed)
    c = spd(d_k, g)
    k = torch.randn(d_k, n, generator=g, dtype=torch.float64)
    r = torch.randn(d_v, n, generator=g, dtype=torch.float64)
    return c, k, r


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).norm() <= tolerance * max(float(b.norm()), 1.0))


def tensor(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# The worked example: C = diag(1, 4), k = (1, 1), r = 1, by hand.
@pytest.mark.parametrize(("alpha", "expected"), [(0.0, (0.8, 0.2)), (1.25, (0.4, 0.1)), (3.75, (0.2, 0.05))])
def test_worked_example(alpha, expected):
    update = solve(tensor((1,), (1,)), tensor((1,)), Metric.of(tensor((1, 0), (0, 4)), 0.0), alpha)
    assert close(update.dense, tensor(expected))
    assert update.leverage.tolist() == pytest.approx([1.25])
    assert update.realised == pytest.approx(1.25 / (1.25 + alpha))


def test_worked_example_with_identity_and_with_a_batch():
    eye = Metric.of(torch.eye(2, dtype=torch.float64), 0.0)
    assert close(solve(tensor((1,), (1,)), tensor((1,)), eye).dense, tensor((0.5, 0.5)))
    for c in (torch.eye(2, dtype=torch.float64), tensor((1, 0), (0, 4)), tensor((2, 1), (1, 3))):
        batch = solve(tensor((1, 1), (0, 1)), tensor((1, 3)), Metric.of(c, 0.0))
        assert close(batch.dense, tensor((1, 2)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_one_key_is_the_published_rank_one_update(seed):
    c, k, r = problem(seed, n=1)
    update = solve(k, r, Metric.of(c, 0.0))
    u = torch.linalg.solve(c, k)
    assert close(update.dense, r @ u.T / (k.T @ u))
    assert close(update.dense @ k, r)
    assert torch.linalg.matrix_rank(update.dense) == 1
    rows = update.dense / update.dense.norm()
    assert close((rows @ u / u.norm()).norm(), torch.ones((), dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_hard_constraint_is_met_and_optimal(seed, scale):
    c, k, r = problem(seed)
    delta = solve(k, r, Metric.of(c, 0.0)).dense
    assert close(delta @ k, r)
    assert close(solve(k, r, Metric.of(scale * c, 0.0)).dense, delta)
    kernel = torch.linalg.svd(k.T)[2][k.shape[1] :].T  # columns with K^T n = 0
    assert close(delta @ c @ kernel, torch.zeros(5, kernel.shape[1], dtype=torch.float64), 1e-8)
    # Any other solution costs more.
    noise = torch.randn(5, kernel.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = delta + noise @ kernel.T
    assert close(other @ k, r, 1e-8)
    assert (other @ c @ other.T).trace() > (delta @ c @ delta.T).trace()


def test_identity_metric_gives_the_minimum_norm_solution():
    _, k, r = problem(1)
    assert close(solve(k, r, Metric.of(torch.eye(12, dtype=torch.float64), 0.0)).dense, r @ torch.linalg.pinv(k))


def test_order_of_facts_does_not_matter_and_nothing_wanted_changes_nothing():
    c, k, r = problem(2)
    metric = Metric.of(c, 0.0)
    order = torch.tensor([2, 0, 1])
    assert close(solve(k[:, order], r[:, order], metric).dense, solve(k, r, metric).dense)
    assert solve(k, torch.zeros_like(r), metric).dense.abs().max() == 0


def test_scaling_keys_and_residuals_together_changes_nothing_in_the_hard_form():
    c, k, r = problem(3)
    metric = Metric.of(c, 0.0)
    assert close(solve(7 * k, 7 * r, metric).dense, solve(k, r, metric).dense)


def test_dependent_keys_are_refused_by_name_and_a_soft_duplicate_counts_twice():
    c, k, r = problem(4)
    metric = Metric.of(c, 0.0)
    twice, wanted = torch.cat([k, k[:, 1:2]], 1), torch.cat([r, -r[:, 1:2]], 1)
    with pytest.raises(EditFailed, match="requests 1 and 3 are linearly dependent"):
        solve(twice, wanted, metric)
    alpha = 0.7
    same = solve(twice, torch.cat([r, r[:, 1:2]], 1), metric, alpha).dense
    # A duplicate fact is a fact with half the slack: scale its column by sqrt(2).
    weight = torch.tensor([1.0, 2**0.5, 1.0], dtype=torch.float64)
    assert close(same, solve(k * weight, r * weight, metric, alpha).dense)


def test_soft_form_is_the_primal_solution():
    c, k, r = problem(5)
    alpha = 0.3
    primal = r @ k.T @ torch.linalg.inv(alpha * c + k @ k.T)
    assert close(solve(k, r, Metric.of(c, 0.0), alpha).dense, primal)


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(EditFailed, match="not positive definite"):
        Metric.of(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))


def test_a_rank_deficient_covariance_is_made_usable_by_the_jitter():
    x = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, k, r = problem(6)
    delta = solve(k, r, Metric.of(x.T @ x)).dense
    assert close(delta @ k, r, 1e-6)
