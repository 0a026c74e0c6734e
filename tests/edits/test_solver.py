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


def tensor(*rows: tuple[float, ...] | float) -> torch.Tensor:
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


def subspace(seed: int, d_k: int = 12, r: int = 7) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d_k, r, generator=g, dtype=torch.float64)).Q


@pytest.mark.parametrize(
    ("l2", "earlier", "expected"), [(1.0, None, (0.5, 0)), (4.0, None, (0.2, 0)), (1.0, (2, 5), (1 / 6, 0))]
)
def test_worked_example_in_a_subspace(l2, earlier, expected):
    """AlphaEdit with a threshold between the eigenvalues 1 and 4: only the first direction may be written."""
    update = solve(
        tensor((1,), (1,)),
        tensor((1,)),
        Metric.of(l2 * tensor((1,)), 0.0),
        1.0,
        earlier=tensor((earlier[0],), (earlier[1],)) if earlier else None,
        within=tensor((1,), (0,)),
    )
    assert (update.dense - tensor(expected)).abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.01, 100))
def test_primal_and_dual_are_one_solution(seed, n, alpha):
    c, k, r = problem(seed, n=n)
    metric = Metric.of(c, 0.0)
    found = solve(k, r, metric, alpha)
    assert close(found.dense, r @ k.T @ torch.linalg.inv(alpha * c + k @ k.T), 1e-8)
    assert found.left.shape[1] == found.right.shape[0] == n
    assert found.leverage.tolist() == pytest.approx((k * torch.linalg.solve(c, k)).sum(0).tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20), st.integers(1, 30))
def test_earlier_keys_are_the_same_as_their_moments_in_the_metric(seed, alpha, n):
    c, k, r = problem(seed)
    past = torch.randn(12, n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    with_columns = solve(k, r, Metric.of(c, 0.0), alpha, earlier=past)
    in_metric = solve(k, r, Metric.of(c + past @ past.T / alpha, 0.0), alpha)
    assert close(with_columns.dense, in_metric.dense, 1e-8)


def test_hard_constraints_keep_earlier_keys_exactly():
    c, k, r = problem(7)
    past = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    delta = solve(k, r, Metric.of(c, 0.0), earlier=past).dense
    assert close(delta @ k, r)
    assert (delta @ past).abs().max() < 1e-10


def test_without_slack_the_soft_form_is_the_hard_one_and_with_much_it_is_the_first_order_term():
    c, k, r = problem(8)
    metric = Metric.of(c, 0.0)
    assert close(solve(k, r, metric, 1e-9).dense, solve(k, r, metric).dense, 1e-6)
    large = 1e9
    assert close(large * solve(k, r, metric, large).dense, r @ torch.linalg.solve(c, k).T, 1e-6)


def test_one_soft_fact_realises_its_leverage_s_share():
    c, k, r = problem(9, n=1)
    s = float(k.T @ torch.linalg.solve(c, k))
    for alpha in (0.1, s, 50.0):
        assert solve(k, r, Metric.of(c, 0.0), alpha).realised == pytest.approx(s / (s + alpha))


def test_what_is_traded_is_the_product_of_alpha_and_metric():
    c, k, r = problem(10)
    assert close(solve(k, r, Metric.of(3 * c, 0.0), 1.0).dense, solve(k, r, Metric.of(c, 0.0), 3.0).dense)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.booleans())
def test_in_a_subspace_nothing_outside_it_is_touched_and_the_published_form_is_met(seed, n, has_past):
    _, k, r = problem(seed, n=n)
    basis = subspace(seed)
    past = problem(seed + 1, n=5)[1] if has_past else None
    l2 = 0.7
    metric = Metric.of(l2 * torch.eye(basis.shape[1], dtype=torch.float64), 0.0)
    delta = solve(k, r, metric, 1.0, earlier=past, within=basis).dense
    p = basis @ basis.T
    assert (delta @ (torch.eye(12, dtype=torch.float64) - p)).norm() <= 1e-10 * max(1.0, float(delta.norm()))
    kept = past @ past.T @ p if past is not None else torch.zeros(12, 12, dtype=torch.float64)
    published = r @ k.T @ p @ torch.linalg.inv(kept + k @ k.T @ p + l2 * torch.eye(12, dtype=torch.float64))
    assert close(delta, published, 1e-8)


def test_the_whole_space_is_ridge_and_no_space_changes_nothing():
    _, k, r = problem(11)
    eye = torch.eye(12, dtype=torch.float64)
    assert close(solve(k, r, Metric.of(eye, 0.0), 1.0, within=eye).dense, solve(k, r, Metric.of(eye, 0.0), 1.0).dense)


def test_conditioning_is_reported_and_what_cannot_be_solved_is_refused():
    c, k, r = problem(12)
    metric = Metric.of(c, 0.0)
    good = solve(k, r, metric).condition
    k[:, 2] = k[:, 1] + 1e-3 * k[:, 2]
    assert 1 <= good < 1e3 < solve(k, r, metric).condition
    k[:, 2] = k[:, 1] + 1e-9 * k[:, 2]
    with pytest.raises(EditFailed, match="requests 1 and 2 are linearly dependent"):
        solve(k, r, metric)
    assert solve(k, r, metric, 0.5).condition < 1e3


def test_the_metric_is_the_symmetric_part_plus_a_jitter_in_units_of_the_mean_diagonal():
    c, k, _ = problem(13)
    skew = torch.triu(torch.ones(12, 12, dtype=torch.float64), 1)
    metric = Metric.of((c + skew - skew.T).float(), 1e-3)
    jitter = 1e-3 * float(c.diagonal().mean())
    assert metric.jitter == pytest.approx(jitter)
    assert Metric.of(c).jitter == pytest.approx(1e-6 * float(c.diagonal().mean()))
    eye = torch.eye(12, dtype=torch.float64)
    assert metric.factor.dtype == torch.float64
    assert close(metric.factor @ metric.factor.T, c + jitter * eye, 1e-6)
    assert close(metric.solve(k.float()), torch.linalg.solve(c + jitter * eye, k.float().double()), 1e-6)


@pytest.mark.parametrize("n", [3, 30])
def test_the_reported_condition_is_that_of_the_system_in_the_1_norm(n):
    """LAPACK gives a lower bound, here within a factor of 2.5."""
    for seed in range(5):
        c, k, r = problem(seed, n=n)
        k[:, 2] = k[:, 1] + 1e-2 * k[:, 2]
        alpha = 1e-3
        core = alpha * c + k @ k.T
        if n < 12:
            gram = k.T @ torch.linalg.solve(c, k) + alpha * torch.eye(n, dtype=torch.float64)
            core = gram / (gram.diagonal()[:, None] * gram.diagonal()).sqrt()
        exact = float(torch.linalg.cond(core, p=1))
        assert 0.4 * exact <= solve(k, r, Metric.of(c, 0.0), alpha).condition <= exact * (1 + 1e-6)


def test_a_request_that_depends_on_an_earlier_key_names_both():
    c, k, r = problem(14)
    metric = Metric.of(c, 0.0)
    past = problem(15, n=3)[1]
    for number in (0, 2):
        earlier = past.clone()
        earlier[:, number] = 2 * k[:, 1]
        with pytest.raises(EditFailed, match=f"keys of request 1 and earlier key {number} are linearly dependent"):
            solve(k, r, metric, earlier=earlier)
    past[:, 2] = past[:, 0]
    with pytest.raises(EditFailed, match="keys of earlier key 0 and earlier key 2 are linearly dependent"):
        solve(k, r, metric, earlier=past)


def test_more_exact_facts_than_a_key_has_dimensions_are_refused():
    c, k, r = problem(16, n=13)
    with pytest.raises(EditFailed, match="linearly dependent"):
        solve(k, r, Metric.of(c, 0.0))
    solve(k, r, Metric.of(c, 0.0), 0.1)


@pytest.mark.parametrize("small", [0.0, 1e-7])
def test_a_singular_or_nearly_singular_system_of_many_keys_is_refused(small):
    metric = Metric(torch.diag(tensor(1.0, small)), 0.0)
    with pytest.raises(EditFailed, match=r"system of 3 keys is too badly conditioned \((inf|3|4)"):
        solve(tensor((1, 1, 1), (0, 0, 0)), tensor((1, 1, 1)), metric, 1.0)


def test_nothing_wanted_is_wholly_realised():
    c, k, r = problem(17)
    assert solve(k, 0 * r, Metric.of(c, 0.0)).realised == 1.0
    assert solve(k, r, Metric.of(c, 0.0)).realised == pytest.approx(1.0)
