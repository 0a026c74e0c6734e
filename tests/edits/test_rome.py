"""ROME on tiny models: the invariants of a written edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, dense
from tiny_lm import make_lm, make_tokenizer

from editlab.edits import replay
from editlab.edits.keys import states_at
from editlab.edits.methods.rome import Config
from editlab.edits.preserve import preserving
from editlab.edits.settings import default_layer
from editlab.edits.targets import forms, shifts
from editlab.errors import ConfigError, EditFailed, RequestError
from editlab.facts import Fact
from editlab.hooks.batch import pad_rows
from editlab.lm import LM
from editlab.rows import rewrite_row, subject_index, target_ids

ROW = {"prompt": "The capital of {} is", "subject": "Vinland", "target_new": "Rome"}
FIRST = {"prompt": "{} is found in", "subject": "A", "target_new": "Rome"}
WORDS = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, object]:
    """Settings that make an edit of a tiny model a matter of milliseconds."""
    g = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=g)) for _ in range(200)]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(lines))
    return {
        "layer": 1, "steps": 6, "lr": 0.3, "clamp": 2.0, "contexts": {6: 2},
        "stats_text": str(text), "stats_tokens": 1500,
    }  # fmt: skip


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_written_key_gives_the_wanted_value_and_undo_restores_every_bit(family, quick):
    """(W + D) k = v*, rank one, one matrix changed, for every family."""
    lm = make_lm(family)
    config = Config(**quick)
    metric = preserving(lm, 1, config)
    (found,) = forms(lm, [Fact(**ROW)], 1, config, metric)
    values = shifts(lm, 1, found, config)
    before = weights(lm)
    entry = lm.edit(ROW, **quick)
    info = entry.edit.info
    changed = [n for n, p in lm.model.named_parameters() if not torch.equal(p, before[n])]
    ref = lm.adapter.down(lm.model, 1)
    assert changed == [ref.name]
    delta = (ref.oriented(lm.model.get_parameter(ref.name)) - ref.oriented(before[ref.name])).double()
    assert torch.linalg.matrix_rank(delta, rtol=1e-4) == len(found) == info["rank"]
    for form, value in zip(found, values, strict=True):
        moved = form.value + delta @ form.key  # W' k + b, as form.value is W k + b
        wanted = form.canonical_value + value.delta.double()  # v*
        assert (moved - wanted).norm() <= 1e-3 * wanted.norm()
        assert (form.value - wanted).norm() > 1e-2 * wanted.norm()  # and it was not so before
    assert info["realised"] == pytest.approx(1, abs=1e-6)
    assert 0 < info["disturbance"] < 1 and 0 < info["spectral_norm"] <= float(delta.norm()) * (1 + 1e-3)
    lm.undo()
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name])
    assert lm.state_hash == lm.base_hash


def test_without_contexts_the_edited_state_is_the_optimised_one_and_the_rest_is_leak(quick):
    """One context, one layer: layer 1's attention precedes its MLP, so h' = h + delta at the edited token, exactly.

    Only there the update stands for the injected shift; at other tokens it adds D k_j, and that is all it does.
    """
    lm = make_lm("llama", add_bos=True)
    config = Config(**(quick | {"contexts": {}}))
    ((form,),) = forms(lm, [Fact(**ROW)], 1, config, preserving(lm, 1, config))
    (value,) = shifts(lm, 1, [form], config)
    row = form.rows[0]
    base, at = lm.fork(), torch.tensor([row.index])
    batch = pad_rows([row.ids])
    entry = lm.edit(ROW, **(quick | {"contexts": {}}))
    update = dense(entry.edit.deltas[lm.adapter.down(lm.model, 1).name]).float()
    shift = states_at(lm, 1, [row]).hidden[0] - states_at(base, 1, [row]).hidden[0]
    assert (shift - value.delta).norm() <= 1e-4 * value.delta.norm()

    def logits(site, change, at=None):
        with base.session() as s, torch.no_grad():
            s.patch(site, 1, change, at=at)
            return s.run(batch).logits

    keys = base.capture(batch, [("mlp_key", 1)])["mlp_key", 1][0]  # (T, d_mlp)
    moved = keys @ update.T
    injected = logits("resid_post", lambda part: part + value.delta, at)
    only_there = logits("mlp_value", lambda part: part + moved[row.index], at)
    everywhere = logits("mlp_value", lambda part: part + moved)
    whole = lm.forward(batch)
    assert (only_there - injected).abs().max() <= 1e-4
    assert (everywhere - whole).abs().max() <= 1e-4
    others = torch.arange(len(row.ids)) != row.index
    leak = float(moved[others].norm(dim=-1).max() / value.delta.norm())
    assert leak > 1e-3 and (whole - injected).abs().max() > 1e-4


def test_the_edit_raises_the_target_and_the_report_numbers_agree(quick):
    from editlab.evaluation.scorer import force

    lm = make_lm("llama")
    before = force(lm, [("The capital of Vinland is", "Rome")])[0].nll
    entry = lm.edit(ROW, **(quick | {"steps": 25}))
    after = force(lm, [("The capital of Vinland is", "Rome")])[0].nll
    assert after < before - 0.5
    first, last = entry.edit.info["target_nll"][0]
    assert last < first


def test_a_subject_that_is_the_first_token_gets_a_key_of_its_own_and_fires(quick):
    from editlab.evaluation.scorer import force

    lm = make_lm("llama")
    pair = [("A is found in", "Rome")]
    before = [force(lm, pair, sink=s)[0].nll for s in (False, True)]
    entry = lm.edit(FIRST, **(quick | {"steps": 25}))
    assert entry.edit.info["first_token"] and "bare" in entry.edit.info["forms"]
    assert entry.edit.info["rank"] == len(entry.edit.info["forms"])
    assert min(entry.edit.info["canonical_gain"]) > 0.45
    for sink, nll in zip((False, True), before, strict=True):
        assert force(lm, pair, sink=sink)[0].nll < nll - 0.2


def test_legacy_meets_its_constraint_at_the_prompt_s_key_and_not_at_the_average(quick):
    lm = make_lm("llama")
    fact = Fact(**ROW)
    row = [rewrite_row(lm, fact, sink=False)]
    before = states_at(lm, 1, row)
    entry = lm.edit(ROW, method="rome-legacy", **quick)
    after = states_at(lm, 1, row)
    update = entry.edit.deltas[lm.adapter.down(lm.model, 1).name]
    received = dense(update).float() @ before.key[0]
    assert (after.value[0] - before.value[0] - received).norm() <= 1e-4 * received.norm()
    # left is delta itself, so u^T k_0 / (u^T k_0) = 1.
    assert (received - update.left[:, 0]).norm() <= 1e-4 * received.norm()
    gains = entry.edit.info["canonical_gain"]
    assert abs(gains[0] - 1) > 1e-6


def test_legacy_and_rome_agree_on_a_single_bare_context(quick):
    lm = make_lm("llama", add_bos=True)
    shared = quick | {"contexts": {}, "clamp": 1.0}
    deltas = []
    for method in ("rome", "rome-legacy"):
        # Both relative to states of their own: make the ball the same by not reaching it.
        entry = lm.edit(ROW, method=method, **(shared | {"clamp": 1e4, "decay": 0.0}))
        deltas.append(dense(next(iter(entry.edit.deltas.values()))))
        lm.undo()
    assert (deltas[0] - deltas[1]).norm() <= 1e-4 * deltas[0].norm()


def test_same_seed_same_edit_whatever_happened_before(quick):
    def delta(lm: LM) -> torch.Tensor:
        entry = lm.edit(ROW, **quick)
        found = dense(next(iter(entry.edit.deltas.values())))
        lm.undo(entry.id)
        return found

    lm = make_lm("llama")
    first = delta(lm)
    torch.manual_seed(123)
    torch.rand(7)
    lm.edit({**ROW, "subject": "Elsewhere"}, **quick)
    lm.undo()
    assert torch.equal(delta(lm), first)
    assert torch.equal(delta(make_lm("llama")), first)
    assert not torch.equal(first, delta(make_lm("llama", seed=1)))


def test_conv1d_and_linear_twins_receive_transposed_equal_updates(quick):
    """GPT-2 stores W transposed; the same matrix in a Linear gets the same edit."""
    lm = make_lm("gpt2")
    twin = make_lm("gpt2")
    for block in twin.model.transformer.h:
        conv = block.mlp.c_proj
        linear = torch.nn.Linear(*conv.weight.shape)
        with torch.no_grad():
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
        block.mlp.c_proj = linear.requires_grad_(False)
    twin = LM(twin.model, twin.tokenizer)
    deltas = []
    for one in (lm, twin):
        ref = one.adapter.down(one.model, 1)
        delta = one.edit(ROW, **quick).edit.deltas[ref.name]
        assert delta.shape == tuple(one.model.get_parameter(ref.name).shape)
        deltas.append((ref.transposed, ref.oriented(dense(delta))))
    assert [transposed for transposed, _ in deltas] == [True, False]
    a, b = (delta for _, delta in deltas)
    assert a.shape == (lm.adapter.d_model, lm.adapter.d_mlp) and a.norm() > 0
    assert (a - b).norm() <= 1e-4 * a.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_undo_is_bit_exact_in_every_precision(dtype, quick):
    lm = make_lm("llama", dtype=dtype)
    before = weights(lm)
    a = lm.edit(ROW, **quick)
    lm.edit({**ROW, "subject": "Elsewhere", "target_new": "Oslo"}, **quick)
    lm.undo(a.id)
    lm.undo()
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name])


def test_undo_with_replay_is_as_if_the_edit_had_never_been(quick):
    second = {**ROW, "subject": "Elsewhere", "target_new": "Oslo"}
    lm, other = make_lm("llama"), make_lm("llama")
    a = lm.edit(ROW, **quick)
    lm.edit(second, **quick)
    lm.undo(a.id, replay=True)
    other.edit(second, **quick)
    assert lm.state_hash == other.state_hash
    lm.redo(a.id)
    assert lm.state_hash != other.state_hash and len(lm.ledger.active) == 2


def test_a_replay_that_fails_leaves_the_ledger_as_it_was(quick, monkeypatch):
    lm = make_lm("llama")
    a = lm.edit(ROW, **quick)
    for subject in ("Elsewhere", "Thule"):
        lm.edit({**ROW, "subject": subject, "target_new": "Oslo"}, **quick)
    before, state = [vars(e) for e in lm.ledger], lm.state_hash
    solve, solved = replay.engine, []

    def once(*args):
        if solved:
            raise EditFailed("The optimiser diverged.")
        solved.append(args)
        return solve(*args)

    monkeypatch.setattr(replay, "engine", once)
    with pytest.raises(EditFailed, match="diverged"):
        lm.undo(a.id, replay=True)
    assert [vars(e) for e in lm.ledger] == before and not any(e["solved_elsewhere"] for e in before)
    assert lm.state_hash == state


@pytest.mark.parametrize(
    ("prompt", "subject", "token"),
    [
        ("{} is", "Vinland", "nd"),
        ("The city of {}, they say, is", "New Vinland", "nd"),
        ("A song by {} is", "Beyoncé", "é"),
        ("We went to {}", "東京", "京"),
    ],
)
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("sink", [False, True])
def test_the_edited_token_ends_where_the_subject_ends(prompt, subject, token, add_bos, sink):
    lm = make_lm("llama", add_bos=add_bos)
    fact = Fact(prompt=prompt, subject=subject, target_new="Rome")
    for side in ("left", "right"):
        lm.tokenizer.padding_side = side
        index, straddles = subject_index(lm, fact, sink=sink)
        row = rewrite_row(lm, fact, sink=sink)
        assert row.index == index and not straddles
        upto = lm.tokenizer.decode(row.ids[: index + 1], skip_special_tokens=True)
        assert upto.endswith(subject) and fact.text.startswith(upto)
        assert upto.endswith(token)


def test_target_ids_continue_the_prompt_with_exactly_one_space():
    lm = make_lm("llama")
    for prompt in ("The capital of France is", "The capital of France is "):
        fact = Fact(prompt=prompt.replace("France", "{}"), subject="France", target_new=" Rome ")
        ids, target = target_ids(lm, fact.text, fact.target_new, sink=False)
        assert lm.tokenizer.decode(ids + target) == "The capital of France is Rome"
    ids, target = target_ids(lm, "Answer:\n", "Rome", sink=False)
    assert lm.tokenizer.decode(ids + target) == "Answer:\nRome"


def test_batched_states_equal_one_by_one():
    lm = make_lm("llama")
    facts = [
        Fact(prompt="{} is", subject=s, target_new="x") for s in ("Al", "Vinland the old", "B", "Longer name here")
    ]
    rows = [rewrite_row(lm, f, sink=True) for f in facts]
    together = states_at(lm, 1, rows, max_tokens=20)
    lm.tokenizer.padding_side = "left"
    assert torch.equal(
        states_at(lm, 1, [rewrite_row(lm, f, sink=True) for f in facts], max_tokens=20).key, together.key
    )
    for i, row in enumerate(rows):
        alone = states_at(lm, 1, [row])
        assert (together.key[i] - alone.key[0]).abs().max() <= 1e-5
        assert (together.hidden[i] - alone.hidden[0]).abs().max() <= 1e-5


def test_bad_requests_are_refused_and_leave_the_model_as_it_was(quick):
    lm = make_lm("llama")
    for row, words in [
        ({**ROW, "target_new": " "}, "target_new: must not be empty"),
        ({**ROW, "prompt": "The capital of France is"}, "does not occur in the prompt"),
        ({**ROW, "prompt": "{} and {}"}, r"needs exactly one \{\}"),
        ({"prompt": "{} is", "subject": "x"}, "target_new: Field required"),
    ]:
        with pytest.raises(RequestError, match=words):
            lm.edit(row, **quick)
    with pytest.raises(RequestError, match="one fact at a time, 2 were given"):
        lm.edit([ROW, ROW], **quick)
    with pytest.raises(ConfigError, match=r"no layer 7 .* from 0 to 2"):
        lm.edit(ROW, **(quick | {"layer": 7}))
    with pytest.raises(ConfigError, match=r"no setting 'stepz'\. Did you mean 'steps'"):
        lm.edit(ROW, stepz=3)
    with pytest.raises(EditFailed, match="did not make 'Rome' more likely"):
        lm.edit(ROW, **(quick | {"steps": 1}))
    with pytest.raises(EditFailed, match="did not make 'Rome' more likely"):
        lm.edit(ROW, **(quick | {"layer": 2}))  # nothing after the last layer carries the change on
    with pytest.raises(EditFailed, match="already answers 'Rome'"):
        lm.edit(ROW, **(quick | {"stop_loss": 100.0}))
    assert len(lm.ledger) == 0 and lm.state_hash == lm.base_hash


def test_default_layers_are_the_published_ones():
    lm = make_lm("gpt2")
    assert default_layer(lm.adapter) == 0  # a sixth of three layers


def test_the_tokenizer_helper_has_the_two_kinds():
    assert make_lm("llama", add_bos=True).adds_bos and not make_lm("llama").adds_bos
    assert make_tokenizer(add_bos=True)("a")["input_ids"][0] == make_tokenizer(add_bos=True).bos_token_id
