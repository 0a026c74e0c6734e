"""Turn one GGUF file into a plain Hugging Face folder of float32 safetensors.

1. transformers reads the GGUF, dequantises every tensor and builds the model and the tokenizer;
2. the marks of the quantised origin are removed, so that the folder loads like any other;
3. `save_pretrained` writes `config.json`, `model.safetensors` and the tokenizer files.

Two runs write the same bytes. One thing is repaired on the way: transformers does not carry over the
digit splitting that a GGUF asks for by the name of its pre-tokenizer, which would tokenise a number after
several spaces differently from the original model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editlab.errors import ModelError
from editlab.models.quiet import quiet_transformers
from editlab.progress import OnStep, StepInfo, silent

# llama.cpp splits every digit off before the GPT-2 pattern for these (src/llama-vocab.cpp).
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# Written into tokenizer_config.json by the loader; they describe this machine's call, not the tokenizer.
_LOADER_ONLY = ("is_local", "local_files_only", "gguf_file", "name_or_path")


def convert_gguf(gguf: Path, folder: Path, on_step: OnStep = silent) -> None:
    """Write the model and tokenizer in `gguf` to the new `folder`.

    Raises:
        ModelError: transformers cannot read this file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(), _tensor_progress(on_step):
        where = {"gguf_file": gguf.name, "local_files_only": True}
        on_step(StepInfo("reading the tokenizer", 0, 1))
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
            on_step(StepInfo("reading the tokenizer", 1, 1))
            on_step(StepInfo("reading the model", 0, 1))
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise ModelError(f"transformers could not convert {gguf.name}: {error}") from error
        _forget_quantisation(model)
        _split_digits(tokenizer, gguf)
        for key in _LOADER_ONLY:
            tokenizer.init_kwargs.pop(key, None)
        tokenizer.model_max_length = model.config.max_position_embeddings
        on_step(StepInfo("writing the weights", 0, 1))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        on_step(StepInfo("writing the weights", 1, 1))


def _forget_quantisation(model: Any) -> None:
    # The tensors are plain float32 by now, but transformers refuses to save a model that still carries a
    # quantiser, and a saved quantization_config would make it look for the GGUF at the next load.
    model.hf_quantizer = None
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, leftover):
            delattr(model.config, leftover)


def _split_digits(tokenizer: Any, gguf: Path) -> None:
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import Digits, Sequence

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if field is None or field.contents() not in _DIGITS_APART:
        return
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


@contextmanager
def _tensor_progress(on_step: OnStep) -> Iterator[None]:
    # The GGUF reader draws its own tqdm bar, which no setting of transformers turns off.
    from transformers import modeling_gguf_pytorch_utils as reader

    def report(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        items = list(tensors)
        on_step(StepInfo("reading the model", 1, 1))
        for done, item in enumerate(items):
            on_step(StepInfo("converting to float32", done, len(items), "tensors"))
            yield item
        on_step(StepInfo("converting to float32", len(items), len(items), "tensors"))

    original = reader.tqdm
    reader.tqdm = report
    try:
        yield
    finally:
        reader.tqdm = original
