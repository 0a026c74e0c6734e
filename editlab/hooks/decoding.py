"""Decoding by what the caller asks for and by nothing else: greedy is greedy, whatever `generation_config.json` says.

transformers fills every option of `generate` that is None from the model's own configuration, also where another one is
handed over. So while `model.generate` runs, the model's configuration is the one that is handed over: neutral, but for
the tokens that end and pad a text, and with the caller's options on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from typing import Any

from transformers import GenerationConfig

from editlab.errors import ConfigError

# Every field of a generation configuration, at the value with which it does nothing. `None` is that of the others'.
NEUTRAL: dict[str, Any] = {
    # how many tokens
    "max_length": None, "max_new_tokens": None, "min_length": 0, "min_new_tokens": None, "max_time": None,
    "stop_strings": None, "early_stopping": False, "exponential_decay_length_penalty": None,
    # one row a prompt, the most probable token
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0.0,
    "length_penalty": 1.0, "penalty_alpha": None, "dola_layers": None, "constraints": None, "force_words_ids": None,
    # of the model's own probabilities
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "renormalize_logits": None, "remove_invalid_values": False, "guidance_scale": None, "watermarking_config": None,
    "token_healing": None,
    # each token by one pass of the model itself
    "prompt_lookup_num_tokens": None, "max_matching_ngram_size": None, "num_assistant_tokens": None,
    "num_assistant_tokens_schedule": None, "assistant_confidence_threshold": None, "assistant_early_exit": None,
    "assistant_lookbehind": None, "target_lookbehind": None, "assistant_ensemble_weight": None, "is_assistant": None,
    "speculation_type": None, "use_mtp": None, "prefill_chunk_size": None, "low_memory": None,
    "continuous_batching_config": None,
    # with the usual cache, in plain PyTorch
    "use_cache": True, "cache_implementation": None, "cache_config": None, "max_cache_len": None,
    "compile_config": None, "disable_compile": True,
    # a tensor of token ids
    "return_dict_in_generate": False, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "output_logits": None,
}  # fmt: skip
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # which tokens those are

_TOKENIZERS = ("tokenizer", "assistant_tokenizer")  # `generate` takes them from its keywords without naming them


@contextmanager
def decoding(model: Any, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What to call `model.generate` with, while open; the model's own configuration is out of force until then.

    Args:
        options: of `generate`, as its caller gave them; what is not among them is neutral.

    Raises:
        ConfigError: they ask for something else than one row of tokens a prompt, or one of them is unknown.
    """
    _check(options)
    _check_known(model, options)
    own = model.generation_config
    config = _configuration(own, options)
    model.generation_config = config
    try:
        others = {n: v for n, v in options.items() if n not in vars(config) and n != "generation_config"}
        yield {"generation_config": config, **others}
    finally:
        model.generation_config = own


def neutral(own: GenerationConfig) -> GenerationConfig:
    """The configuration that does nothing, with the special tokens of `own`."""
    known = vars(GenerationConfig())
    special = {name: getattr(own, name, None) for name in SPECIAL_TOKENS}
    return GenerationConfig(**{name: v for name, v in (NEUTRAL | special).items() if name in known})


def _configuration(own: GenerationConfig, options: Mapping[str, Any]) -> GenerationConfig:
    config = neutral(own)
    given = options.get("generation_config")
    fields = () if given is None else (*NEUTRAL, *SPECIAL_TOKENS)
    overrides = {name: value for name in fields if (value := getattr(given, name, None)) is not None}
    overrides |= {name: value for name, value in options.items() if name in vars(config)}
    if overrides.get("do_sample") and "top_k" not in overrides:
        overrides["top_k"] = 0  # transformers' own default cuts the distribution off
    if config.pad_token_id is None:
        overrides = {"pad_token_id": 0} | overrides
    for name, value in overrides.items():
        setattr(config, name, value)
    return config


def _check(options: Mapping[str, Any]) -> None:
    given = options.get("generation_config")
    for name in ("num_return_sequences", "return_dict_in_generate"):
        value = options.get(name, getattr(given, name, None))
        if value is not None and value != NEUTRAL[name]:
            raise ConfigError(
                f"Generation gives one row of tokens for each prompt, and {name}={value} asks for something else.",
                "Leave it out; give a prompt several times for several samples of it.",
            )


def _check_known(model: Any, options: Mapping[str, Any]) -> None:
    takers = (model.generate, model.prepare_inputs_for_generation, model.forward)
    known = {*NEUTRAL, *vars(GenerationConfig()), *_TOKENIZERS, *(n for f in takers for n in signature(f).parameters)}
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"Generation has no option '{name}'.",
                f"Did you mean '{close[0]}'?" if close else "Use those of transformers' GenerationConfig.",
            )
