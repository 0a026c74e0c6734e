"""`editlab locate`: one prompt, a file of facts, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cli_fixtures import Cli

PROMPT = ["--prompt", "The capital of {} is", "--subject", "Vinland"]
LOOSE = ["min_gap=-1", "samples=2"]  # a random model answers nothing that corruption could take away


def test_one_prompt_gives_every_cell_and_a_figure(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    ended = cli("locate", *PROMPT, "-m", model(), "--out", tmp_path / "run", "--json", "-q", *LOOSE)
    assert ended.code == 0, ended
    effects = pd.DataFrame(ended.data["effects"])
    n_layers = effects["layer"].nunique()
    assert len(effects) == n_layers * effects["token"].nunique() or len(effects) % n_layers == 0
    assert "corrupted" in ended.data["headline"]
    assert set(ended.data["suggested_layers"]) <= set(range(n_layers))
    assert len(pd.read_parquet(tmp_path / "run" / "results.parquet")) == len(effects)
    figure = json.loads((tmp_path / "run" / "figures" / "effects.json").read_text())
    assert figure["data"][0]["type"] == "heatmap"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["kind"] == "locate"


def test_a_file_gives_the_average_and_says_what_it_leaves_out(
    cli: Cli, model: Callable[..., Path], facts: Path, tmp_path: Path
) -> None:
    ended = cli("locate", "--file", facts, "-m", model(), "--out", tmp_path / "run", "--json", "-q", *LOOSE)
    assert ended.code == 0, ended
    assert {"layer", "role", "effect", "low", "high", "n"} <= set(ended.data["effects"][0])
    assert isinstance(ended.data["left_out"], list)


def test_the_terminal_shows_a_map(cli: Cli, model: Callable[..., Path], tmp_path: Path) -> None:
    ended = cli("locate", *PROMPT, "-m", model(), "--out", tmp_path / "run", "-q", *LOOSE)
    assert ended.code == 0, ended
    assert "subject" in ended.out and "Run:" in ended.out


def test_a_runs_config_traces_the_same_again(cli: Cli, model: Callable[..., Path], facts: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "again", "other", "file", "file-again")]
    one = cli("locate", *PROMPT, "-m", model(), "--kind", "mlp", "--seed", 3, "-o", runs[0], "--json", "-q", *LOOSE)
    again = cli("locate", "--config", runs[0] / "config.yaml", "-o", runs[1], "--json", "-q")
    assert again.code == 0 and again.data["effects"] == one.data["effects"]
    # What the command line says comes first.
    more = ["--prompt", "The {} made", "--subject", "old town", "--seed", 4]
    other = cli("locate", "--config", runs[0] / "config.yaml", *more, "-o", runs[2], "--json", "-q")
    assert other.code == 0 and other.data["effects"] != one.data["effects"]
    manifest = json.loads((runs[2] / "manifest.json").read_text())
    assert manifest["config"]["seed"] == 4 and manifest["config"]["kind"] == "mlp"
    assert manifest["asked"] == {"prompt": "The {} made", "subject": "old town", "answer": None}
    many = cli("locate", "--file", facts, "--limit", 3, "-m", model(), "-o", runs[3], "--json", "-q", *LOOSE)
    assert many.code == 0, many
    same = cli("locate", "--config", runs[3] / "config.yaml", "-o", runs[4], "--json", "-q")
    assert same.code == 0 and same.data["effects"] == many.data["effects"]
    (tmp_path / "bad.yaml").write_text("prompt: [1]")
    bad = cli("locate", "--config", tmp_path / "bad.yaml")
    assert bad.code == 2 and "no usable 'prompt'" in bad.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "The capital is", "--subject", "Vinland"], "Vinland"),
        (["--prompt", "The capital of {} is"], "--subject is missing"),
        ([], "--prompt with --subject, or --file"),
        ([*PROMPT, "min_gap=1"], "nothing to restore"),
        ([*PROMPT, "--kind", "spirit"], "kind"),
        ([*PROMPT, "window=0"], "window"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_sentence(
    arguments: list[str], sentence: str, cli: Cli, model: Callable[..., Path]
) -> None:
    ended = cli("locate", *arguments, "-m", model(), "-q")
    assert ended.code == 2, ended
    assert sentence in ended.err
    assert "Traceback" not in ended.err
