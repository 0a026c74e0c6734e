"""A hub id that a registered checkpoint was made from: the hub's own weights where they can be had, else it is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from cli_fixtures import Cli

from editlab import LM
from editlab.errors import ConfigError, ModelError
from editlab.models import registry
from editlab.models.load import find_folder, load
from editlab.models.registry import Entry, LocalSource

HUB_ID = "someone/original"
NOTE = "Made from a 4-bit copy."


@pytest.fixture(autouse=True)
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A checkpoint under a name of its own, made from a hub model that is not to be had."""
    source = LocalSource(kind="local", path="factworld-gpt2")
    entry = Entry(name="the-copy", aliases=("original",), hub=HUB_ID, licence="x", note=NOTE, source=source)
    entries = (entry, *registry.entries())
    monkeypatch.setattr(registry, "entries", lambda: entries)
    monkeypatch.setattr(registry, "_told", set())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return entry


@pytest.fixture
def cached(tmp_path: Path, model: Callable[..., Path]) -> Callable[[str, str], Path]:
    """Put the original into the hub cache, under a commit and a branch."""

    def put(commit: str, branch: str = "main") -> Path:
        stored = tmp_path / "hub" / "models--someone--original"
        snapshot = stored / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in model().iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
        (stored / "refs").mkdir(exist_ok=True)
        (stored / "refs" / branch).write_text(commit)
        return snapshot

    return put


def test_the_original_in_the_hub_cache_is_what_its_id_means(
    cached: Callable[..., Path], copied: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    commit = "0123456789" * 4
    snapshot = cached(commit)
    for name in (HUB_ID, "Someone/Original"):
        loaded = load(name)
        assert (loaded.path, loaded.revision, loaded.name) == (snapshot, commit, name)
    assert load("the-copy").path == load("original").path == registry.local_path(copied.source)
    assert not caplog.records


def test_where_the_hub_can_be_reached_the_original_is_fetched(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def download(hub_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise OSError("not in the cache")
        asked.append({"hub_id": hub_id, **options})
        return str(model())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert LM.from_pretrained(HUB_ID).adapter.family == "LlamaForCausalLM"
    assert LM.from_pretrained("the-copy", revision="v2").adapter.family == "LlamaForCausalLM"
    assert [(a["hub_id"], a["revision"]) for a in asked] == [(HUB_ID, None), (HUB_ID, "v2")]
    assert not caplog.records


def test_where_it_cannot_be_had_the_copy_is_taken_and_that_is_said_once(
    copied: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "editlab")
    loaded = load(HUB_ID)
    assert loaded.path == registry.local_path(copied.source)
    assert loaded.name == "the-copy"  # so that who opens its edits later gets these weights
    assert LM.from_pretrained(HUB_ID).name == "the-copy"
    (record,) = caplog.records
    said = record.getMessage()
    assert HUB_ID in said and "'the-copy' is used in its place" in said and NOTE in said
    caplog.clear()
    assert load("the-copy").name == "the-copy" and load("original").name == "original"
    assert not caplog.records


def test_a_revision_means_the_hub_s_own_weights_or_nothing(cached: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hub"):
        find_folder(HUB_ID, revision="v2")
    snapshot = cached("9876543210" * 4, "v2")
    assert find_folder(HUB_ID, revision="v2")[0] == find_folder("the-copy", revision="v2")[0] == snapshot
    with pytest.raises(ConfigError, match="is a folder here"):
        find_folder(snapshot, revision="v2")


def test_the_command_line_says_it_and_takes_a_revision(cli: Cli, cached: Callable[..., Path]) -> None:
    ended = cli("generate", "-p", "The capital of France is", "-m", HUB_ID, "--json")
    assert ended.code == 0 and ended.data["model"] == "the-copy"
    (warning,) = json.loads(ended.out)["warnings"]
    assert "is used in its place" in warning and ended.err.count("is used in its place") == 1
    cached("9876543210" * 4, "v2")
    ended = cli("generate", "-p", "The river", "-m", HUB_ID, "--revision", "v2", "--json", "-q")
    assert ended.code == 0 and ended.data["model"] == HUB_ID and "warnings" not in ended.data
    ended = cli("generate", "-p", "The river", "-m", HUB_ID, "--revision", "v3", "--json", "-q")
    assert ended.code == 3
    pulled = cli("pull", HUB_ID, "--json")
    assert pulled.code == 0 and f"'the-copy' is not {HUB_ID} itself. {NOTE}" in pulled.data["warnings"]


def test_the_app_is_started_with_the_revision(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    pytest.importorskip("streamlit", reason="the optional extra 'app' is not installed")
    started: list[dict[str, str]] = []
    monkeypatch.setattr("editlab.cli.app.run_instead", lambda command, environment: started.append(environment))
    assert cli("app", "-m", HUB_ID, "--revision", "v2", "-q").code == 0
    assert (started[0]["EDITLAB_MODEL"], started[0]["EDITLAB_REVISION"]) == (HUB_ID, "v2")
