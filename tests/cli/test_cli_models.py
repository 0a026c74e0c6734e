"""The commands `pull`, `ls` and `env`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editlab.cli.__main__ import run
from editlab.models import registry
from editlab.models.registry import Entry, LocalSource

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_ls_models_says_what_is_here(capsys: Capture) -> None:
    assert run(["ls", "models"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "default", "cached", "size", "licence", "hub"]
    assert any(row.startswith("smollm2-135m") and "False" in row for row in rows)
    assert run(["ls", "models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [m["name"] for m in models if m["default"]] == ["smollm2-135m"]


def test_ls_of_an_unknown_kind(capsys: Capture) -> None:
    assert run(["ls", "modles"]) == 2
    assert "Did you mean 'models'" in capsys.readouterr().err


def test_pull_of_an_unknown_name(capsys: Capture) -> None:
    assert run(["pull", "smolm2-135m"]) == 3
    assert "Did you mean 'smollm2-135m'" in capsys.readouterr().err


def test_pull_of_a_shipped_model_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    source = LocalSource(kind="local", path="nearby")
    entry = Entry(name="nearby", default=True, licence="cc0-1.0", source=source)
    monkeypatch.setattr(registry, "entries", lambda: (entry,))
    (tmp_path / "nearby").mkdir()
    (tmp_path / "nearby" / "config.json").write_text("{}")
    monkeypatch.setattr(registry, "local_path", lambda _: tmp_path / "nearby")
    assert run(["pull"]) == 0
    assert str(tmp_path / "nearby") in capsys.readouterr().out


def test_env_tells_versions_and_machine(capsys: Capture, own_cache: Path) -> None:
    own_cache.mkdir()
    (own_cache / "file").write_bytes(b"123")
    assert run(["env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"editlab", "torch", "transformers", "gguf"} <= set(told["packages"])
    assert told["machine"]["memory_bytes"] > 0
    assert told["cache"] == {"folder": str(own_cache), "size_bytes": 3}
    assert run(["env"]) == 0
    assert "  torch threads: " in capsys.readouterr().out


@pytest.mark.model
def test_pulling_what_is_there_is_instant(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("EDITLAB_CACHE")
    run(["pull", "--quiet"])
    capsys.readouterr()
    assert run(["pull", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["already_there"] is True
    assert told["seconds"] < 1
    assert len(told["source_sha256"]) == len(told["weights_sha256"]) == 64
