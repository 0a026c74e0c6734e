"""The logit lens: the last layer is the model itself, and every layer is norm and unembedding of its state."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import make_lm

from editlab.probes.prompts.logit_lens import logits_by_layer

PROMPTS = ["The old town by the river", "In the sea"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2", "opt", "bloom"])
def test_the_last_layer_says_what_the_model_says(family: str) -> None:
    lm = make_lm(family)
    batch = lm.encode(PROMPTS)
    found = logits_by_layer(lm, PROMPTS)
    assert found.shape[:2] == (lm.adapter.n_layers, 2)
    assert torch.allclose(found[-1], lm.forward(batch, read=batch.last).float(), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_layer_is_read_through_the_final_norm_and_the_unembedding(family: str) -> None:
    lm = make_lm(family)
    batch = lm.encode(PROMPTS)
    states = lm.capture(batch, ["resid_post"])
    norm, unembed = (lm.model.get_submodule(path) for path in (lm.adapter.final_norm, lm.adapter.unembed))
    found = logits_by_layer(lm, PROMPTS)
    for layer in range(lm.adapter.n_layers):
        with torch.no_grad():
            wanted = unembed(norm(states["resid_post", layer][:, -1]))
        assert torch.allclose(found[layer], wanted, atol=1e-5)


def test_a_soft_cap_is_the_model_s() -> None:
    lm = make_lm("gemma2", final_logit_softcapping=0.5)
    assert float(logits_by_layer(lm, PROMPTS).abs().max()) <= 0.5


def test_kl_and_rank_end_at_the_model_s_own_answer() -> None:
    rows = make_lm("llama").probe(PROMPTS, "logit-lens").to_pandas()
    last = rows[rows["layer"] == rows["layer"].max()]
    assert (last["rank"] == 1).all()
    assert last["KL"].abs().max() < 1e-6
    assert (last["says"] == last["answer"]).all()
    assert (rows["KL"] > -1e-6).all()
