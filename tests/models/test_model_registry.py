"""The registry of named checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from editlab.errors import ConfigError, ModelError
from editlab.models import registry
from editlab.models.cache import cache_root, folder_size
from editlab.models.registry import LocalSource, WheelSource

LOCAL = """
checkpoints:
  - name: one
    default: true
    licence: cc0-1.0
    source: {kind: local, path: one}
"""


def test_the_default_is_smollm2() -> None:
    entry = registry.default()
    assert entry.name == "smollm2-135m"
    assert entry.licence == "apache-2.0"
    assert isinstance(entry.source, WheelSource)
    assert entry.weights is not None


@pytest.mark.parametrize(
    "name", ["smollm2-135m", "SMOLLM2-135M", "smollm2-135m-instruct", "huggingfacetb/SmolLM2-135M-Instruct"]
)
def test_names_aliases_and_hub_ids_find_an_entry_in_any_case(name: str) -> None:
    assert registry.get(name) is registry.default()


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        registry.get("smolm2-135")


def test_a_local_entry_is_read_and_found_beside_the_registry() -> None:
    (entry,) = registry.read(LOCAL)
    assert isinstance(entry.source, LocalSource)
    assert registry.local_path(entry.source).name == "one"
    assert (registry.local_path(entry.source).parent / "registry.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (LOCAL.replace("path: one", "path: one, colour: red"), "colour"),
        (LOCAL.replace("default: true", "default: false"), "exactly one"),
        (
            LOCAL + LOCAL.split("checkpoints:")[1].replace("default: true", "aliases: [ONE]"),
            "two checkpoints",
        ),
        (LOCAL.replace("name: one", "name: One Two"), "name"),
        ("checkpoints: [", "not valid"),
    ],
)
def test_a_wrong_registry_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        registry.read(text)


def test_the_cache_is_chosen_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "a"))
    assert cache_root() == tmp_path / "a"
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "b"))
    assert cache_root() == tmp_path / "b"
    monkeypatch.delenv("EDITLAB_CACHE")
    assert cache_root().name == "editlab"


def test_folder_size_counts_nested_files_and_takes_a_missing_folder_as_empty(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    assert folder_size(tmp_path) == 5
    assert folder_size(tmp_path / "none") == 0
