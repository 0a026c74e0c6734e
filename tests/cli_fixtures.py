"""Fixtures for tests of whole command lines on tiny model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import make_lm

from editlab.cli.__main__ import run
from editlab.models.quiet import quiet_transformers

WORDS = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
FACT = ["--prompt", "The capital of {} is", "--subject", "Vinland", "--target", "Rome"]
PROMPTS = ["The capital of Vinland is", "The river"]
ROWS = [
    {"id": "one", "prompt": "The capital of {} is", "subject": "Vinland", "target_new": "Rome", "target_true": "Oslo"},
    {"id": "two", "prompt": "{} plays the", "subject": "Anna", "target_new": "harp", "neighbours": ["Otto plays the"]},
    {"id": "three", "prompt": "The sea by {} is", "subject": "Thule", "target_new": "green"},
]


@dataclass(frozen=True)
class Ended:
    """A command line that was run."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object on one line and nothing else."""
        assert self.out.count("\n") == 1
        data: dict[str, Any] = json.loads(self.out, parse_constant=pytest.fail)
        assert data.pop("schema_version") == 1
        return data


Cli = Callable[..., Ended]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of some family, made once."""
    root = tmp_path_factory.mktemp("models")

    def of(family: str = "llama") -> Path:
        folder = root / family
        if not folder.exists():
            with quiet_transformers():
                make_lm(family).save_pretrained(folder)
        return folder

    return of


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics and contexts of the tiny models, computed once for this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("EDITLAB_CACHE", str(shared_cache))
    monkeypatch.delenv("EDITLAB_DEBUG", raising=False)
    monkeypatch.delenv("EDITLAB_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make an edit of a tiny model a matter of milliseconds."""
    g = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=g)) for _ in range(200)]
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(lines))
    settings = "layer=1 lr=0.3 steps=6 clamp=2 stats_tokens=1500"
    return [*settings.split(), "contexts={6: 2}", f"stats_text={text}"]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


@pytest.fixture
def run_of(cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run folder with edits: of one fact, or of the file of three."""

    def make(family: str = "llama", mode: str = "", name: str = "made") -> Path:
        folder = tmp_path / name
        what = ["--file", facts, "--mode", mode] if mode else FACT
        ended = cli("edit", *what, "--model", model(family), "--out", folder, "-q", "--json", *quick)
        assert ended.code == 0, ended
        return folder

    return make
