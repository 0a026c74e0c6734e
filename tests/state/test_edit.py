"""What an edit is made of: sums, products with gains, norms, and the digest that names a change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import dense

from editlab.errors import EditlabError
from editlab.state.edit import Delta, Edit


def made(**changes: Any) -> Edit:
    given = {"method": "m", "config": {}, "requests": [], "deltas": {"w": Delta(dense=torch.ones(2, 3))}}
    return Edit(**(given | changes))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_gain_multiplies_the_slices_of_one_axis(axis: int) -> None:
    values = torch.tensor([[0.0, 2.0], [1.0, -0.5]])  # of any shape: they are taken in order
    flat = values.reshape(-1)
    delta = Delta.gain(values, axis, 3)
    shape = (4, 3) if axis == 0 else (3, 4)
    assert (delta.shape, delta.rank, delta.is_gain) == (shape, 1, True)
    total = torch.randn(shape, dtype=torch.float64)
    before = total.clone()
    assert delta.apply_to(total) is total
    assert torch.equal(total, before * (flat[:, None] if axis == 0 else flat[None, :]))
    product = torch.ones(shape, dtype=torch.float64) * (flat[:, None] if axis == 0 else flat)
    assert torch.equal(dense(delta), product)
    assert delta.norm() == pytest.approx(float((product - 1).norm()), rel=1e-12)
    twice = delta.to(torch.float64)
    assert twice.is_gain and twice.dtype == torch.float64 and torch.equal(dense(twice), product)


def test_a_gain_of_one_is_no_change_and_has_no_length() -> None:
    for size in (3, 7, 1000):
        assert Delta.gain(torch.ones(size), 0, 5).norm() == 0.0
    # Rounding must not make a square negative.
    assert Delta.gain(torch.full((999,), 1 + 1e-9, dtype=torch.float64), 1, 999).norm() < 1e-4


@pytest.mark.parametrize(
    "parts",
    [
        {"dense": torch.ones(2, 2), "is_gain": True},
        {"left": torch.ones(4, 2), "right": torch.ones(2, 4), "is_gain": True},
    ],
)
def test_gains_have_one_factor(parts: dict[str, Any]) -> None:
    with pytest.raises(EditlabError, match="gain"):
        Delta(**parts)


def test_each_form_adds_in_place_and_says_what_it_is() -> None:
    dense = Delta(dense=torch.full((2, 3), 2.0))
    factors = Delta(left=torch.ones(2, 1), right=torch.full((1, 3), 2.0))
    for delta in (dense, factors):
        total = torch.ones(2, 3, dtype=torch.float64)
        assert delta.apply_to(total) is total
        assert torch.equal(total, torch.full((2, 3), 3.0, dtype=torch.float64))
        assert delta.norm() == pytest.approx(24**0.5)
    assert (dense.rank, factors.rank) == (2, 1)
    assert repr(dense) == "Delta(dense, 2 x 3, norm 4.899)"
    assert repr(factors) == "Delta(rank 1, 2 x 3, norm 4.899)"
    assert repr(Delta.gain(torch.zeros(2), 0, 3)) == "Delta(gain, 2 x 3, norm 2.449)"


def test_one_bad_number_anywhere_is_not_finite() -> None:
    assert Delta(left=torch.ones(2, 1), right=torch.ones(1, 3)).is_finite
    assert not Delta(left=torch.ones(2, 1), right=torch.tensor([[1.0, float("nan"), 1.0]])).is_finite
    assert not Delta(left=torch.tensor([[float("inf")], [1.0]]), right=torch.ones(1, 3)).is_finite


def test_the_digest_is_of_the_change_and_of_nothing_else() -> None:
    left, right = torch.ones(2, 1), torch.full((1, 3), 0.5)
    added, gain = Delta(left=left, right=right), Delta(left=left, right=right, is_gain=True)
    routed = {"path": "p", "layer": 1}
    changes = [
        made(),
        made(deltas={"v": Delta(dense=torch.ones(2, 3))}),
        made(deltas={"w": Delta(dense=torch.zeros(2, 3))}),
        made(deltas={"w": added}),
        made(deltas={"w": gain}),
        made(deltas={"w": added, "v": gain}),
        made(deltas={}, routing=routed, tensors={"x": torch.ones(2)}),
        made(deltas={}, routing=routed | {"layer": 2}, tensors={"x": torch.ones(2)}),
        made(deltas={}, routing=routed, tensors={"x": torch.zeros(2)}),
        made(deltas={}, routing=routed, tensors={"y": torch.ones(2)}),
    ]
    assert len({edit.digest for edit in changes}) == len(changes)
    others = made(method="other", config={"a": 1}, requests=[{"subject": "x"}], info={"loss": 1.0})
    assert others.digest == made().digest  # who asked for it does not matter
    assert made(tensors={"keys": torch.ones(2)}).digest == made().digest  # nor what later edits need
    assert made(deltas={"v": gain, "w": added}).digest == changes[5].digest  # nor any order
    turned = made(deltas={}, routing={"layer": 1, "path": "p"}, tensors={"x": torch.ones(2)})
    assert turned.digest == changes[6].digest
    two = {"b": torch.ones(1), "a": torch.zeros(1)}
    assert (
        made(deltas={}, routing=routed, tensors=two).digest
        == made(deltas={}, routing=routed, tensors=dict(reversed(two.items()))).digest
    )


def test_everything_is_kept_as_json_holds_it() -> None:
    edit = made(
        config={"layers": (1, 2)}, requests=[{"subject": "x", "spans": (0, 1)}], routing={"path": "p", "k": (1,)}
    )
    assert edit.config == {"layers": [1, 2]} and edit.routing == {"path": "p", "k": [1]}
    assert edit.requests == [{"subject": "x", "spans": [0, 1]}]
    losses = [1.0, float("nan"), [float("inf"), 2.0], {"x": float("-inf"), "y": (3.0,)}]
    assert made(info={"losses": losses}).info == {"losses": [1.0, None, [None, 2.0], {"x": None, "y": [3.0]}]}
    deltas = {"w": Delta(dense=torch.ones(1, 1))}
    edit = made(deltas=deltas)
    deltas.clear()
    assert list(edit.deltas) == ["w"]
    for part in ("config", "requests", "routing"):
        bad: Any = [{"x": object()}] if part == "requests" else {"x": object()}
        with pytest.raises(EditlabError, match="JSON"):
            made(**{part: bad})


def test_a_summary_says_the_first_request_and_how_many_more() -> None:
    fact = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
    assert made(requests=[fact]).summary == "The capital of France is → Rome"
    assert made(requests=[fact] * 3).summary == "The capital of France is → Rome (and 2 more)"
    assert made().summary == "no requests"
    assert made(info={"what": "heads 1.2 pruned"}).summary == "heads 1.2 pruned"
    assert made(requests=[{"prompt": "{} is"}]).summary == "is"
    assert made(requests=[{"target_new": "Rome"}]).summary == "Rome"
    long = made(requests=[fact | {"subject": "x" * 200}]).summary
    assert len(long) == 80 and long.startswith("The capital of xxx")
