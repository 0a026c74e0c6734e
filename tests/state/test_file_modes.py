"""Whatever is written is as readable as its neighbours: by the umask, also where a library makes files of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from tiny_lm import make_lm

from editlab.data.corpus import load_corpus
from editlab.edits.covariance import StatsSettings, collect
from editlab.runs import write_run, write_table
from editlab.runs.memory.learner import Learner
from editlab.state.lora import save_lora

OF_ONE = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "in the sea"}


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_follow_the_umask(
    umask: int, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "out"
    lm = make_lm("llama")
    lm.edit(OF_ONE, "lora", steps=2)
    save_lora(root / "lora", lm.ledger, lm.model, lm.name)
    lm.edit(OF_ONE, "rome-nocov", layer=1, steps=2, contexts={4: 1})
    lm.edit(OF_ONE, "grace", layer=1, steps=2)
    lm.save_edits(root / "pack")
    lm.save_edits(root / "pack")  # over the older one
    lm.save_pretrained(root / "folder")
    write_run(root / "run", lm, "edit", {}, [])
    write_table(root / "table", lm, "probe", {}, pd.DataFrame({"a": [1.0]}), {})
    lm.evaluate([OF_ONE], metrics="efficacy_argmax").save(root / "evaluation")
    Learner(make_lm("llama")).save(root / "checkpoint.safetensors", {})
    text = next(pair.partition("=")[2] for pair in quick if pair.startswith("stats_text="))
    collect(make_lm("llama"), [1], load_corpus(text), StatsSettings(tokens=600))
    written = [*root.rglob("*"), *(tmp_path / "cache").rglob("*")]
    assert {p.suffix for p in written} >= {".safetensors", ".json", ".parquet", ".yaml", ".sqlite"}
    for path in written:
        usual = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == usual, path
