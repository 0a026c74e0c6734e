"""Methods that write many facts: each is the shared objective with its own settings, and does what that promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.edits.methods.alphaedit import low_span
from editlab.edits.preserve import covariances
from editlab.edits.settings import SeveralLayersSettings, edit_layers
from editlab.edits.solver import Metric, solve
from editlab.edits.targets import forms
from editlab.edits.values import optimise
from editlab.errors import AdapterError, ConfigError, EditFailed, RequestError
from editlab.evaluation.scorer import force
from editlab.runs.batch import Plan, run_batch

METHODS = ("memit", "memit-seq", "emmet", "emmet-released", "alphaedit")
FACTS = [
    Fact(prompt="The capital of {} is", subject="Vinland", target_new="Rome"),
    Fact(prompt="{} plays the", subject="The young Anna", target_new="harp"),
    Fact(prompt="In the sea by {} is", subject="Thule", target_new="green"),
]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    g = torch.Generator().manual_seed(0)
    words = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
    lines = [" ".join(words[i] for i in torch.randint(len(words), (12,), generator=g)) for _ in range(200)]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(lines))
    return {"lr": 0.3, "steps": 6, "clamp": 2, "contexts": {6: 2}, "stats_tokens": 1500, "stats_text": str(text)}


def delta_of(lm: LM, entry: Any, layer: int) -> torch.Tensor:
    """The change of a layer's down projection as (d_model, d_mlp) float64."""
    ref = lm.adapter.down(lm.model, layer)
    delta = entry.edit.deltas[ref.name]
    whole = delta.dense if delta.dense is not None else delta.left @ delta.right
    return ref.oriented(whole).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_facts_become_likelier_and_undo_restores_every_bit(method: str, family: str, quick: dict[str, Any]) -> None:
    lm = make_lm(family)
    pairs = [(f.text, f.target_new) for f in FACTS]
    before = [f.nll for f in force(lm, pairs, sink=True)]
    # With next to no slack: a random model's keys are so alike that a soft edit of it hardly shows.
    soft: dict[str, float] = {"lambda_rel": 1e-6} if method.startswith("memit") else {}
    soft |= {"tau_rel": 0.9, "l2": 1e-6} if method == "alphaedit" else {}
    soft |= {"emmet_lambda": 1e-9} if method == "emmet-released" else {}
    entry = lm.edit(FACTS, method, layer=1, **(quick | {"steps": 15}), **soft)
    after = [f.nll for f in force(lm, pairs, sink=True)]
    assert sum(after) < sum(before) - 0.1
    assert len(entry.edit.requests) == 3
    lm.undo(entry.id)
    assert lm.state_hash == lm.base_hash


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_fact_under_an_equality_constraint_is_rome(family: str, quick: dict[str, Any]) -> None:
    lm = make_lm(family, add_bos=True)
    alone = quick | {"contexts": {}}  # then the averaged value is the prompt's own, and both anchors are one
    rome = lm.fork().edit(FACTS[0], "rome", layer=1, **alone)
    emmet = lm.fork().edit(FACTS[0], "emmet", layer=1, **alone)
    a, b = delta_of(lm, rome, 1), delta_of(lm, emmet, 1)
    assert (a - b).norm() <= 1e-4 * a.norm()


def test_equality_constraints_are_met_for_every_key(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    entry = lm.edit(FACTS, "emmet", layer=1, **quick)
    assert entry.edit.info["layers"][0]["realised"] == pytest.approx(1, abs=1e-4)
    keys = entry.edit.tensors["keys.1"].double()
    written = delta_of(lm, entry, 1) @ keys
    assert 0 < entry.edit.info["disturbance"] < 1
    # Layer 1's own attention comes before its MLP, so the keys there are those that were solved for.
    assert float(written.norm()) == pytest.approx(entry.edit.info["layers"][0]["gap"][0], rel=1e-3)


def test_memit_in_one_layer_is_the_released_emmet(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    d_mlp = lm.adapter.d_mlp
    memit = lm.fork().edit(FACTS, "memit", layer=1, lambda_rel=0.5 * 3 / d_mlp, **quick)
    released = lm.fork().edit(FACTS, "emmet-released", layer=1, update_weight=3, emmet_lambda=0.5, **quick)
    a, b = delta_of(lm, memit, 1), delta_of(lm, released, 1)
    assert (a - b).norm() <= 1e-4 * a.norm()


def test_without_slack_memit_is_emmet(quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2")
    memit = lm.fork().edit(FACTS, "memit", layer=1, lambda_rel=1e-9, **quick)
    emmet = lm.fork().edit(FACTS, "emmet", layer=1, **quick)
    a, b = delta_of(lm, memit, 1), delta_of(lm, emmet, 1)
    assert (a - b).norm() <= 1e-3 * b.norm()


def test_the_order_of_facts_does_not_matter(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    a = delta_of(lm, lm.fork().edit(FACTS, "memit", layer=1, **quick), 1)
    b = delta_of(lm, lm.fork().edit(FACTS[::-1], "memit", layer=1, **quick), 1)
    assert (a - b).norm() <= 1e-3 * a.norm()


@pytest.mark.parametrize("spread", ["uniform", "last_only"])
def test_layers_close_the_gap_one_after_the_other(spread: str, quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2", n_layer=5)
    entry = lm.edit(FACTS, "memit", layers=[1, 3], spread=spread, lambda_rel=1e-6, **quick)
    layers = entry.edit.info["layers"]
    assert [d["layer"] for d in layers] == ([1, 3] if spread == "uniform" else [3])
    assert all(d["gap"][1] < d["gap"][0] for d in layers)
    # The rest is the distance between the averaged key and the prompt's own.
    assert layers[-1]["gap"][1] < 0.5 * layers[0]["gap"][0]
    assert set(entry.edit.tensors) == {f"keys.{d['layer']}" for d in layers}
    # The deltas applied together are what was applied one after the other.
    by_hand = lm.fork()
    assert by_hand.state_hash == lm.state_hash


def test_alphaedit_leaves_the_other_directions_alone(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    entry = lm.edit(FACTS, "alphaedit", layer=1, tau_rel=0.01, **quick)
    config = SeveralLayersSettings(layer=1, **quick)
    covariance = covariances(lm, [1], config)[1]
    low = low_span(covariance, 0.01 * float(covariance.trace()))
    change = delta_of(lm, entry, 1)
    assert entry.edit.info["layers"][0]["directions"] == [low.shape[1], lm.adapter.d_mlp]
    outside = change - change @ low @ low.T
    assert outside.norm() <= 1e-5 * change.norm()  # stored in float32
    with pytest.raises(EditFailed, match="No direction of the keys"):
        lm.edit(FACTS, "alphaedit", layer=1, tau=1e-30, **quick)


def test_the_span_is_a_projector_and_all_of_the_space_when_the_threshold_is_high() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=g, dtype=torch.float64) * torch.linspace(0.2, 3, 12)
    c = x.T @ x / 60
    values = torch.linalg.eigvalsh(c)
    low = low_span(c, float(values[5:7].mean()))
    p = low @ low.T
    assert low.shape == (12, 6) and (p @ p - p).abs().max() < 1e-12
    # Ordinary keys lose at most the threshold for what is written.
    delta = torch.randn(4, 12, generator=g, dtype=torch.float64) @ p
    assert (delta @ c @ delta.T).trace() <= float(values[5:7].mean()) * delta.square().sum()
    k, r = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (12, 4))
    whole = low_span(c, float(values[-1]) * 1.01)
    ridge = Metric.of(0.7 * torch.eye(12, dtype=torch.float64), 0.0)
    found = solve(k, r, ridge, 1.0, within=whole).dense
    assert (found - solve(k, r, ridge, 1.0).dense).abs().max() < 1e-12
    with pytest.raises(EditFailed, match="No direction of the keys"):
        low_span(c, float(values[0]))


@pytest.mark.parametrize(
    ("method", "settings"), [("alphaedit", {"tau_rel": 0.5, "l2": 1e-6}), ("memit-seq", {"lambda_rel": 1e-9})]
)
def test_earlier_facts_are_kept_by_their_keys(method: str, settings: dict[str, Any], quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    first = lm.edit(FACTS[:1], method, layer=1, **settings, **quick)
    second = lm.edit(FACTS[1:], method, layer=1, **settings, **quick)
    keys = first.edit.tensors["keys.1"].double()
    moved = (delta_of(lm, second, 1) @ keys).norm() / (delta_of(lm, first, 1) @ keys).norm()
    lm.undo(second.id)
    lm.undo(first.id)
    alone = lm.edit(FACTS[1:], method, layer=1, **settings, **quick)
    forgetting = (delta_of(lm, alone, 1) @ keys).norm() / (delta_of(lm, first, 1) @ keys).norm()
    assert moved < 0.2 * forgetting


RIVAL = FACTS[0].model_copy(update={"prompt": "The capital of {} was", "target_new": "Oslo"})


@pytest.mark.parametrize("method", [m for m in METHODS if m != "emmet"])
def test_facts_at_one_place_get_one_value_between_them_where_the_method_is_soft(
    method: str, quick: dict[str, Any]
) -> None:
    lm = make_lm("llama")
    entry = lm.edit([*FACTS, RIVAL, FACTS[1].model_copy()], method, layer=1, **quick)
    info = entry.edit.info
    assert info["rank"] == 3 and len(info["steps"]) == 3 and len(entry.edit.requests) == 5
    twice, shared = info["warnings"][:2]
    assert "1 fact is given twice" in twice and "request 4 is request 1" in twice
    told = ("request 0 ('The capital of Vinland is': 'Rome')", "request 3 ('The capital of Vinland was': 'Oslo')")
    assert " and ".join(told) in shared
    config = SeveralLayersSettings(layer=1, **quick)
    metric = Metric.of(covariances(lm, [1], config)[1])
    both = forms(make_lm("llama"), [FACTS[0], RIVAL], 1, config, metric)
    joint = [row for form in both for row in form[0].rows]
    fresh = make_lm("llama")
    target = replace(both[0][0].target, rows=tuple(joint))
    (value,) = optimise(fresh, 1, [target], config)
    assert info["target_nll"][0] == pytest.approx([value.nlls[0], value.nlls[-1]], rel=1e-3)


def test_a_fact_that_is_given_twice_is_written_once(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    for method in ("memit", "emmet"):
        once = lm.edit(FACTS, method, layer=1, **quick)
        lm.undo()
        again = lm.edit([FACTS[0], *FACTS, FACTS[2]], method, layer=1, **quick)
        lm.undo()
        assert delta_of(lm, again, 1).sub(delta_of(lm, once, 1)).norm() <= 1e-6 * delta_of(lm, once, 1).norm()


def test_facts_that_contradict_each_other_fail_alone_where_the_method_is_hard(
    quick: dict[str, Any], tmp_path: Path
) -> None:
    lm = make_lm("llama")
    rows = [f.model_copy(update={"id": f"row {i}"}) for i, f in enumerate([*FACTS, RIVAL])]
    entry = lm.edit(rows, "emmet", layer=1, **quick)
    assert [f["row"] for f in entry.edit.info["failed"]] == [0, 3] and len(entry.edit.requests) == 2
    lm.undo()
    others = lm.edit(FACTS[1:], "emmet", layer=1, **quick)
    assert (delta_of(lm, others, 1) - delta_of(lm, entry, 1)).norm() <= 1e-4 * delta_of(lm, others, 1).norm()
    lm.undo()
    agreeing = [*FACTS, RIVAL.model_copy(update={"target_new": "Rome"})]
    assert "failed" not in lm.edit(agreeing, "emmet", layer=1, **quick).edit.info
    lm.undo()
    other_tokens = [*FACTS, agreeing[-1].model_copy(update={"target_prefix": "none"})]
    assert [f["row"] for f in lm.edit(other_tokens, "emmet", layer=1, **quick).edit.info["failed"]] == [0, 3]
    lm.undo()
    with pytest.raises(RequestError, match=r"'row 0' .* and 'row 3' .* different answers at one place"):
        lm.edit([rows[0], rows[3]], "emmet", layer=1, **quick)
    plan = Plan(method="emmet", mode="batch", settings={"layer": 1, **quick})
    found = run_batch(lm, rows, plan, tmp_path / "run")
    assert [f.fact for f in found.failed] == ["row 0", "row 3"] and "at one place" in found.failed[0].reason
    assert [r.fact.id for r in found.reports] == ["row 1", "row 2"]


def test_an_object_that_is_given_twice_fails_with_what_it_contradicts(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    entry = lm.edit([*FACTS, RIVAL, FACTS[0]], "emmet", layer=1, **quick)
    assert [f["row"] for f in entry.edit.info["failed"]] == [0, 3, 4]
    assert [request["subject"] for request in entry.edit.requests] == [fact.subject for fact in FACTS[1:]]
    lm.undo()
    with pytest.raises(RequestError, match=r"request 0 .* and request 1 .* different answers at one place"):
        lm.edit([FACTS[0], RIVAL, FACTS[0]], "emmet", layer=1, **quick)


def test_batched_keys_are_those_of_one_fact_at_a_time(quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2")
    config = SeveralLayersSettings(layer=1, **quick)
    metric = Metric.of(covariances(lm, [1], config)[1])
    together = forms(lm, FACTS, 1, config, metric)
    for fact, found in zip(FACTS, together, strict=True):
        (alone,) = forms(lm, [fact], 1, config, metric)
        assert [f.name for f in found] == [f.name for f in alone]
        for a, b in zip(found, alone, strict=True):
            assert (a.key - b.key).norm() <= 1e-5 * b.key.norm()
            assert (a.reference - b.reference).norm() <= 1e-5 * b.reference.norm()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_takes_a_batch(family: str, quick: dict[str, Any]) -> None:
    lm = make_lm(family)
    entry = lm.edit(FACTS, "memit", layer=1, **quick)
    assert set(entry.edit.deltas) == {lm.adapter.down(lm.model, 1).name}


def test_spreading_over_normalised_outputs_is_refused(quick: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="cannot be spread over layers"):
        make_lm("gemma2").edit(FACTS, "memit", layers=[0, 1], **quick)


def test_layers_are_checked_and_said_one_way() -> None:
    lm = make_lm("llama")
    assert edit_layers(lm.adapter, SeveralLayersSettings(layers=(2, 0))) == (0, 2)
    assert edit_layers(lm.adapter, SeveralLayersSettings(layer=1)) == (1,)
    with pytest.raises(ConfigError, match="Choose one from 0 to 2"):
        edit_layers(lm.adapter, SeveralLayersSettings(layers=(0, 3)))
    with pytest.raises(ConfigError, match="exclude each other"):
        lm.edit(FACTS, "memit", layer=1, layers=[1])


def test_a_batch_survives_a_pack(quick: dict[str, Any], tmp_path: Path) -> None:
    lm = make_lm("llama")
    entry = lm.edit(FACTS, "alphaedit", layer=1, tau_rel=0.5, **quick)
    lm.save_edits(tmp_path / "pack")
    other = make_lm("llama")
    (again,) = other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash
    assert torch.equal(again.edit.tensors["keys.1"], entry.edit.tensors["keys.1"])


def test_anchored_values_have_the_length_of_the_unedited_model_s(quick: dict[str, Any]) -> None:
    lm = make_lm("llama", add_bos=True)
    hard = quick | {"contexts": {}}  # then keys and values are the prompt's own, and EMMET meets them exactly
    first = lm.edit(FACTS[0], "emmet", layer=1, value_norm_anchor=True, **hard)
    second = lm.edit(FACTS[1:], "emmet", layer=1, value_norm_anchor=True, **hard)
    anchor = first.edit.info["norm_anchor"]
    assert second.edit.info["norm_anchor"] == pytest.approx(anchor, rel=1e-6)  # of the base, not of the weights now
    weights = dict(lm.model.named_parameters())
    matrix = weights[lm.adapter.down(lm.model, 1).name].double()
    outputs = matrix @ second.edit.tensors["keys.1"].double()
    assert outputs.norm(dim=0).tolist() == pytest.approx([anchor] * 2, rel=1e-3)
    free = lm.fork().edit(FACTS[2], "emmet", layer=1, **hard)
    assert free.edit.info["norm_anchor"] is None
