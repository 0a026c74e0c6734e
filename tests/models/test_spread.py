"""Models larger than a device: analyses give what they give on one, edits and loads that cannot work are refused."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock

from editlab import LM
from editlab.data.conflicts import cases_of_relation
from editlab.errors import ConfigError, EditlabError, ModelError
from editlab.hooks.placement import is_spread
from editlab.models import room
from editlab.models.load import find_folder, load
from editlab.models.offload import drop_abandoned
from editlab.probes.channels.factors import Part, factorise
from editlab.probes.channels.readout import read_out
from editlab.probes.channels.scan import scan
from editlab.probes.conflicts.heads import map_heads
from editlab.probes.conflicts.items import ItemSettings, build_items

FACT = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}


@pytest.fixture(scope="module", params=["factworld-llama", "factworld-gpt2"])
def pair(request: pytest.FixtureRequest) -> tuple[LM, LM]:
    """The model in memory, and with weights on disk as far as half of them do not fit into what it may use."""
    name = request.param
    half = room.bytes_of(find_folder(name)[0], "float32") // 2
    return LM.from_pretrained(name), LM.from_pretrained(name, device_map="auto", max_memory={"cpu": half})


def test_weights_are_off_the_device_and_known_by_content(pair: tuple[LM, LM]) -> None:
    plain, spread = pair
    assert any(p.is_meta for p in spread.model.parameters())
    assert spread.device == plain.device == torch.device("cpu")
    assert spread.base_hash == plain.base_hash
    for name, held in plain.model.named_parameters(remove_duplicate=False):
        assert torch.equal(spread.weight(name), held)


def test_answers_and_scores_are_the_same(pair: tuple[LM, LM]) -> None:
    plain, spread = pair
    prompt = "The capital of France is"
    assert spread.generate(prompt, max_new_tokens=6) == plain.generate(prompt, max_new_tokens=6)
    tables = [lm.evaluate([FACT], metrics=("efficacy", "perplexity")).to_pandas() for lm in pair]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_traces_are_the_same(pair: tuple[LM, LM]) -> None:
    tables = [lm.locate(FACT["prompt"], "France", samples=2).to_pandas() for lm in pair]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_head_maps_are_the_same(pair: tuple[LM, LM]) -> None:
    tables = []
    for lm in pair:
        items = build_items(lm, cases_of_relation("capital"), ItemSettings(subjects=12))
        tables.append(map_heads(lm, items.split("discovery")).to_pandas())
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_channels_are_the_same(pair: tuple[LM, LM]) -> None:
    found = [scan(lm).to_pandas() for lm in pair]
    pd.testing.assert_frame_equal(found[0], found[1])
    texts = [read_out(lm, factorise(lm), Part(0, 1, 0)).tokens for lm in pair]
    assert texts[0] == texts[1]


def test_an_offloaded_model_is_not_edited(pair: tuple[LM, LM]) -> None:
    _, spread = pair
    with pytest.raises(EditlabError, match="kept off the device"):
        spread.edit(FACT)
    assert not spread.ledger.active


def test_a_model_on_one_kind_of_device_is_not_spread(pair: tuple[LM, LM]) -> None:
    plain, spread = pair
    assert not is_spread(plain.model) and not is_spread(spread.model)
    spread.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1, "lm_head": "cpu"}
    assert is_spread(spread.model)
    del spread.model.hf_device_map


def test_bytes_are_told_from_headers() -> None:
    folder = find_folder("factworld-llama")[0]
    held = load("factworld-llama").model
    count = sum(p.numel() for p in held.parameters())
    assert room.bytes_of(folder, "float32") == 4 * count
    assert room.bytes_of(folder, "bfloat16") == 2 * count
    assert room.bytes_of(folder) in (2 * count, 4 * count)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_folder("factworld-llama")[0]
    needed = room.bytes_of(folder, "float32")
    monkeypatch.setattr(room, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ModelError) as refused:
        load("factworld-llama")
    assert "are free on cpu" in str(refused.value)
    assert "--dtype bfloat16" in refused.value.fix and "--device-map auto" in refused.value.fix
    assert load("factworld-llama", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load("factworld-llama", device_map="auto", max_memory={"cpu": needed // 2}).model.dtype == torch.float32


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="No device map 'evenly'"):
        load("factworld-llama", device_map="evenly")


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = load("factworld-llama", dtype="float64", device_map={"": "disk"})
    assert next(iter(found.model.parameters())).is_meta
    assert list(tmp_path.glob("editlab-offload-*"))
    del found
    import gc

    gc.collect()
    assert not list(tmp_path.iterdir())


def test_offloaded_weights_of_a_process_that_was_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned, used, other = (tmp_path / name for name in ("editlab-offload-a", "editlab-offload-b", "else"))
    for folder in (abandoned, used, other):
        folder.mkdir()
        (folder / "weights.dat").write_text("x")
    (abandoned / ".lock").touch()
    begun = tmp_path / "editlab-offload-c"
    begun.mkdir()  # by a process that has not taken its lock yet
    with FileLock(used / ".lock"):
        drop_abandoned()
        assert begun.exists()
        os.utime(begun, (0, 0))
        drop_abandoned()
        assert not begun.exists()
        assert not abandoned.exists() and (used / "weights.dat").exists() and (other / "weights.dat").exists()
    half = room.bytes_of(find_folder("factworld-gpt2")[0], "float32") // 2
    lm = LM.from_pretrained("factworld-gpt2", device_map="auto", max_memory={"cpu": half})
    drop_abandoned()
    (mine,) = tmp_path.glob("editlab-offload-*")
    assert (mine / ".lock").exists() and lm.generate("The capital of France is", 1)  # its own is in use
    del lm
    gc.collect()
    assert not list(tmp_path.glob("editlab-offload-*"))
