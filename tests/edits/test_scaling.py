"""The formulas of cost, against operations that are counted and bytes that are stored, on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import make_lm, make_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import Phi3Config, Phi3ForCausalLM

from editlab.data.corpus import Corpus
from editlab.edits import scaling
from editlab.edits.covariance import StatsSettings, partial_moments, plan, save_moments
from editlab.lm import LM

FAMILIES = ["llama", "gpt2"]
TEXTS = ["the old town by the river and the sea", "many years made the new stone by the people in the town"] * 3


def eager(family: str) -> LM:
    """With attention as plain matrix products, which are what is counted."""
    lm = make_lm(family)
    lm.model.set_attn_implementation("eager")
    return lm


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_is_what_is_counted(family: str) -> None:
    lm = eager(family)
    shape, ids = scaling.Shape.of(lm), torch.arange(24).reshape(2, 12)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        lm.model(ids)
    assert counted.get_total_flops() == scaling.forward_flops(shape, 2, 12, reads=24)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_as_many_bytes(family: str) -> None:
    lm = make_lm(family)
    held = sum(p.nbytes for p in lm.model.parameters() if p.dim() == 2)
    positions = sum(p.nbytes for n, p in lm.model.named_parameters() if "wpe" in n)
    assert held - positions == scaling.weight_bytes(scaling.Shape.of(lm), each=4)


def test_gate_and_up_in_one_matrix_are_counted() -> None:
    config = Phi3Config(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    lm = LM(Phi3ForCausalLM(config), make_tokenizer())
    held = sum(p.nbytes for p in lm.model.parameters() if p.dim() == 2)
    assert held == scaling.weight_bytes(scaling.Shape.of(lm), each=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_what_is_counted_and_stored(family: str, tmp_path: Path) -> None:
    lm = eager(family)
    shape, settings = scaling.Shape.of(lm), StatsSettings(tokens=40, batch_tokens=10_000, max_length=10)
    corpus = Corpus("test", "test", lambda: TEXTS)
    (batch,) = plan(lm, corpus, settings, 40)
    with FlopCounterMode(display=False) as counted:
        found = partial_moments(lm, [1], corpus, settings, 0)[1]
    rows, width = batch.ids.shape
    keys = 2 * found.count * shape.d_mlp**2
    expected = scaling.statistics_flops(shape, 1, rows * width, width) - 2 * rows * width * shape.d_mlp**2 + keys
    assert counted.get_total_flops() == expected
    save_moments(tmp_path / "c.safetensors", found, {})
    assert found.total.nbytes == scaling.statistics_bytes(shape)
    assert 0 <= (tmp_path / "c.safetensors").stat().st_size - scaling.statistics_bytes(shape) < 1000


def test_a_value_is_what_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The difference of two edits that differ in their steps alone."""
    fact = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "sea"}
    counts = []
    for steps in (2, 6):
        monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / str(steps)))
        lm = eager("llama")
        with FlopCounterMode(display=False) as counted:
            edit = lm.edit(fact, "rome-nocov", layer=0, steps=steps, contexts={4: 2}, stop_loss=0, lr=0.01).edit
        assert edit.info["steps"] == [steps]
        counts.append(counted.get_total_flops())
    prompt, target = (len(lm.tokens(text)[0]) for text in ("The old town of the river is", " sea"))
    after = len(lm.tokens("The old town of the river is")[0]) - len(lm.tokens("The old town of the river")[0]) + 1
    shape = scaling.Shape.of(lm)
    each = scaling.value_flops(
        shape, 0, rows=4, columns=after + target - 1, reads=3 * target + 1, width=prompt + 6 + target, steps=1
    )
    assert prompt > after
    # How many tokens stand in front of a subject, and how rows are padded, the formula does not know.
    assert (counts[1] - counts[0]) / 4 == pytest.approx(each, rel=0.4)


def test_an_edit_is_as_many_bytes() -> None:
    lm = make_lm("llama")
    fact = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "sea"}
    edit = lm.edit(fact, "rome-nocov", layer=1, steps=2, contexts={4: 1}).edit
    (delta,) = edit.deltas.values()
    assert sum(t.nbytes for t in delta.tensors.values()) == delta.rank * scaling.delta_bytes(scaling.Shape.of(lm), 1)


def test_large_models_are_as_large_as_they_are_called() -> None:
    assert scaling.LLAMA_8B.parameters == pytest.approx(8.03e9, rel=0.001)
    assert scaling.LLAMA_70B.parameters == pytest.approx(70.55e9, rel=0.001)
