"""Greedy is greedy, and sampling is as asked for, whatever the checkpoint's generation configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import make_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from editlab import LM
from editlab.edits.keys import contexts
from editlab.errors import ConfigError
from editlab.evaluation.metrics.fluency import generate
from editlab.evaluation.suite import Suite
from editlab.hooks.decoding import NEUTRAL, SPECIAL_TOKENS

TEXTS = ["the thing that the river is", "an old"]
# What a checkpoint may hold; several of these alone end `generate` in an error.
STORED: dict[str, Any] = {
    "do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.5, "min_p": 0.3, "typical_p": 0.5,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "num_beams": 3, "num_return_sequences": 2, "num_beam_groups": 3,
    "diversity_penalty": 1.0, "length_penalty": 3.0, "early_stopping": True, "penalty_alpha": 0.6, "dola_layers": "low",
    "constraints": [1], "force_words_ids": [[3]], "repetition_penalty": 9.0, "encoder_repetition_penalty": 0.2,
    "no_repeat_ngram_size": 1, "bad_words_ids": [[7], [12]], "sequence_bias": [[[20], 50.0]],
    "suppress_tokens": list(range(5, 250)), "begin_suppress_tokens": list(range(5, 250)), "forced_bos_token_id": 7,
    "forced_eos_token_id": 9, "exponential_decay_length_penalty": (1, 9.0), "guidance_scale": 5.0,
    "watermarking_config": {"bias": 50.0}, "stop_strings": ["e", "a"], "max_time": 0.0, "max_length": 1,
    "min_length": 400, "min_new_tokens": 2, "renormalize_logits": True, "remove_invalid_values": True,
    "prompt_lookup_num_tokens": 3, "num_assistant_tokens": 4, "assistant_early_exit": 1, "use_mtp": True,
    "token_healing": True, "prefill_chunk_size": 2, "cache_implementation": "static", "use_cache": False,
    "return_dict_in_generate": True, "output_scores": True, "output_attentions": True, "output_hidden_states": True,
    "output_logits": True, "pad_token_id": 11, "our_own_field": 3,
}  # fmt: skip


def storing(lm: LM, stored: dict[str, Any]) -> LM:
    for name, value in stored.items():
        setattr(lm.model.generation_config, name, value)
    return lm


def argmax_loop(lm: LM, text: str, n: int) -> list[int]:
    """One plain forward pass a token, until the end of the sequence."""
    ids = lm.tokenizer(text)["input_ids"]
    new: list[int] = []
    while len(new) < n:
        with torch.no_grad():
            token = int(lm.model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        new.append(token)
    return new


def test_every_field_of_a_generation_configuration_is_neutral_or_kept() -> None:
    fields = set(GenerationConfig().to_dict()) - {"transformers_version", "_from_model_config"}
    assert fields <= NEUTRAL.keys() | set(SPECIAL_TOKENS), "what does the new field do, and where is it off?"
    # Where transformers has a default of its own, ours is it; but for compiling, which is a matter of speed.
    defaults = GenerationConfig._get_default_generation_params()
    assistants = {name for name in defaults if "assistant" in name or name == "target_lookbehind"}
    for name in defaults.keys() - assistants - {"max_length"}:
        assert NEUTRAL[name] == defaults[name], name


@pytest.mark.parametrize("stored", [{name: value} for name, value in STORED.items()] + [STORED])
def test_greedy_is_the_argmax_of_plain_passes(stored: dict[str, Any]) -> None:
    plain = make_lm("llama")
    expected = [argmax_loop(plain, text, 6) for text in TEXTS]
    lm = storing(plain, stored)
    config = lm.model.generation_config
    assert lm.generate_ids(lm.encode(TEXTS), 6) == expected
    assert lm.model.generation_config is config and all(getattr(config, n) == v for n, v in stored.items())


@pytest.mark.parametrize("stored", [{"temperature": 0.1, "top_p": 0.2}, {"repetition_penalty": 9.0}, STORED])
def test_what_is_sampled_is_the_model_s_own_distribution(stored: dict[str, Any]) -> None:
    lm = storing(make_lm("llama"), stored)
    batch = lm.encode(["the thing that the river is"] * 200)
    generator, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    with lm.session() as s:
        new = s.generate(batch, 1, do_sample=True, generator=generator)[:, 0]
    p = lm.forward(batch, read=batch.last).softmax(-1)
    assert torch.equal(new, torch.multinomial(p, 1, generator=same)[:, 0])
    beyond = p[0].argsort(descending=True)[50:]
    assert torch.isin(new, beyond).any()  # not cut off after transformers' own 50


def test_texts_that_a_method_or_a_metric_samples_follow_its_own_settings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for stored in ({}, STORED | {"min_new_tokens": None}):
        monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / str(len(made))))
        lm = storing(make_lm("llama"), stored)
        texts = generate(lm, Suite(), {"fact": TEXTS}, lambda step: None)
        made.append((texts, contexts(lm, per_length={6: 5}, seed=1)))
    assert made[0] == made[1]


def test_options_that_are_asked_for_are_in_force_and_some_are_refused() -> None:
    lm = storing(make_lm("llama"), STORED)
    batch = lm.encode(TEXTS)
    greedy = lm.generate_ids(batch, 6)
    first = greedy[0][0]
    assert all(first not in row for row in lm.generate_ids(batch, 6, suppress_tokens=[first]))
    assert lm.generate_ids(batch, 6, eos_token_id=first)[0] == []
    asked = GenerationConfig(suppress_tokens=[first])
    assert lm.generate_ids(batch, 6, generation_config=asked) == lm.generate_ids(batch, 6, suppress_tokens=[first])
    with lm.session() as s:
        beams: Tensor = s.generate(batch, 6, num_beams=2, eos_token_id=None)
    assert beams.shape == (2, 6)
    for options in (
        {"num_return_sequences": 2, "num_beams": 2},
        {"return_dict_in_generate": True},
        {"generation_config": GenerationConfig(num_return_sequences=3, num_beams=3)},
    ):
        with pytest.raises(ConfigError, match="one row of tokens for each prompt"):
            lm.generate_ids(batch, 2, **options)
    assert lm.generate_ids(batch, 6) == greedy


def test_generation_parameters_in_the_model_s_own_config_do_nothing_either() -> None:
    plain, lm = make_lm("llama"), make_lm("llama")
    lm.model.config.repetition_penalty = 9.0  # transformers' own `generate` ends in an error
    assert lm.generate(TEXTS, 6) == plain.generate(TEXTS, 6)


@pytest.mark.parametrize("from_disk", [True, False])
def test_a_saved_folder_has_the_checkpoint_s_own_generation_configuration(from_disk: bool, tmp_path: Path) -> None:
    stored = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "suppress_tokens": [3], "max_length": 77}
    lm = make_lm("llama")
    if from_disk:
        lm.save_pretrained(tmp_path / "base")
        file = tmp_path / "base" / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | stored))
        lm = LM.from_pretrained(tmp_path / "base")
    else:
        storing(lm, stored)  # which transformers refuses to write, since greedy decoding would not use them
    lm.generate(TEXTS, 3)
    folder = lm.save_pretrained(tmp_path / "saved")
    written = json.loads((folder / "generation_config.json").read_text())
    assert {name: written[name] for name in stored} == stored
    again = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert again.eos_token_id == lm.tokenizer.eos_token_id and again.temperature == 0.6
