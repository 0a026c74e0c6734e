"""A model as a plain Hugging Face folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from editlab.hooks.decoding import neutral


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write weights, configurations and tokenizer, the generation configuration as the model has it.

    transformers writes no generation configuration that it finds at odds with itself, such as a temperature without
    sampling, which many a checkpoint has.
    """
    own = model.generation_config
    model.generation_config = neutral(own)
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = own
    written = copy.copy(own)
    written.compile_config = None  # of this process, and nothing that JSON can hold
    written.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)
    mode = (folder / "generation_config.json").stat().st_mode  # safetensors makes files for the owner alone
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
