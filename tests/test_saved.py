"""Results: what is saved comes back as it was, nothing is executed on reading, and none is forgotten."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import editlab
from editlab import LM, Fact
from editlab.config import build
from editlab.data.conflicts import cases_of_relation
from editlab.errors import ConfigError
from editlab.probes import trace
from editlab.probes.channels import factors, readout
from editlab.probes.channels.parts import Part
from editlab.probes.channels.scan import scan
from editlab.probes.conflicts import behaviour, flow, heads, items, levers, prune, transfer
from editlab.probes.prompts.next_token import next_tokens
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.verbs import VERBS
from editlab.state.saved import NAME, Saved, _packed, _unpacked

FACT = Fact(prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris")
# They have files of their own, or are views of what a run or the ledger keeps.
ELSEWHERE = {
    "Evaluation",
    "EditReport",
    "RunRecord",
    "Entry",
    "Ledger",
    "LM",
    "Report",
    "StudyResult",
    "Result",
    "_Line",
}
ASKED = items.ItemSettings(subjects=12, draws=1)


@pytest.fixture(scope="module")
def world() -> LM:
    return LM.from_pretrained("factworld-llama")


@pytest.fixture(scope="module")
def asked(world: LM) -> items.Items:
    return items.build_items(world, cases_of_relation("capital"), ASKED)


@pytest.fixture(scope="module")
def mapped(world: LM, asked: items.Items) -> heads.HeadMap:
    return heads.map_heads(world, asked.split("discovery"))


MADE: dict[str, Callable[[LM, items.Items, heads.HeadMap], Saved]] = {
    "trace": lambda lm, i, h: lm.locate(FACT.prompt, FACT.subject, samples=2),
    "traces": lambda lm, i, h: trace.trace_many(lm, [FACT], build(trace.Config, {"samples": 2}, "trace")),
    "probe": lambda lm, i, h: lm.probe("The capital of France is", "logit-lens"),
    "next tokens": lambda lm, i, h: next_tokens(lm, "The capital of France is"),
    "routing": lambda lm, i, h: lm.route("The capital of France is"),
    "scan": lambda lm, i, h: scan(lm),
    "readout": lambda lm, i, h: readout.read_out(lm, factors.factorise(lm), Part(0, 1, 0)),
    "items": lambda lm, i, h: i,
    "heads": lambda lm, i, h: h,
    "behaviour": lambda lm, i, h: behaviour.probe(lm, cases_of_relation("capital"), ASKED),
    "flow": lambda lm, i, h: flow.flow(lm, i.split("discovery")),
    "pruning": lambda lm, i, h: prune.prune(lm, i, h, prune.PruneSettings(grid=(1, 2), controls=2)),
    "transfer": lambda lm, i, h: transfer.transfer_of(
        lm, [(5, 1)], "context", ASKED, ["language", "question"], "capital"
    ),
    "levers": lambda lm, i, h: levers.compare(
        lm, i, h, "context", settings=prune.PruneSettings(grid=(1,), controls=0), juice=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_result_comes_back_as_it_was(
    world: LM, asked: items.Items, mapped: heads.HeadMap, name: str, tmp_path: Path
) -> None:
    found: Any = MADE[name](world, asked, mapped)
    again: Any = type(found).load(found.save(tmp_path / "result"))
    same(found, again)
    if hasattr(found, "to_pandas"):
        pd.testing.assert_frame_equal(found.to_pandas(), again.to_pandas())
    if hasattr(found, "headline"):
        assert found.headline == again.headline
    with pytest.raises(ConfigError, match="holds a result already"):
        found.save(tmp_path / "result")


def test_a_memory_study_comes_back(world: LM, tmp_path: Path) -> None:
    verb = VERBS["recognize"]
    settings = verb.settings(items=2, exposures=1, seeds=1, counterbalance=False)
    found = run_memory(world.fork(), verb, settings, tmp_path / "run")
    again = type(found).load(found.save(tmp_path / "saved"))  # type: ignore[attr-defined]
    assert again.headline == found.headline and again.settings == found.settings
    pd.testing.assert_frame_equal(again.to_pandas(), found.to_pandas())


def same(a: Any, b: Any) -> None:
    """Fail unless both hold the same values of the same types."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            if f.init:
                same(getattr(a, f.name), getattr(b, f.name))
    else:
        assert a == b or (a != a and b != b)


def test_values_of_every_kind_come_back() -> None:
    held = {
        "none": None, "yes": True, "n": 3, "x": 0.1, "nan": float("nan"), "inf": -float("inf"), "text": "東京 {$}",
        "tuple": (1, ("a", None)), "list": [1, [2.5]], (1, 2): {3: "three"}, "$": {"$": "tensor", "name": "0"},
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16), "view": torch.arange(6.0).reshape(2, 3).T,
        "ints": np.arange(3), "bools": np.array([[True], [False]]), "none of it": np.zeros((0, 3)),
        "words": np.array(["a", "bcd"]), "scalar": np.float32(0.5),
        "table": pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[5, 7]),
    }  # fmt: skip
    arrays: dict[str, torch.Tensor] = {}
    tables: list[pd.DataFrame] = []
    text = json.dumps(_packed(held, arrays, tables), allow_nan=False)
    same(_unpacked(json.loads(text), arrays, tables.__getitem__), held | {"scalar": 0.5})


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    from editlab.probes.result import ProbeResult

    bad = ProbeResult(object(), pd.DataFrame(), "x", "y", "z")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a object cannot be saved"):
        bad.save(tmp_path / "result")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "of",
    ["os:system", "editlab.cli.__main__:main", "editlab.lm:LM", "editlab.probes.result:none", "pickle:loads"],
)
def test_only_results_are_built(tmp_path: Path, of: str) -> None:
    from editlab.probes.result import ProbeResult

    folder = ProbeResult("says", pd.DataFrame({"a": [1]}), "a", "a", "a").save(tmp_path / "result")
    found = json.loads((folder / NAME).read_text())
    found["result"] |= {"of": of, "fields": {}}
    (folder / NAME).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="damaged, or of another version"):
        ProbeResult.load(folder)


def test_a_result_that_is_none_is_said(world: LM, tmp_path: Path) -> None:
    from editlab.probes.trace_results import Trace

    with pytest.raises(ConfigError, match="holds no result"):
        Trace.load(tmp_path / "nothing")
    folder = lm_probe(world).save(tmp_path / "result")
    with pytest.raises(ConfigError, match="holds a ProbeResult, not a Trace"):
        Trace.load(folder)
    (folder / "table-0.parquet").unlink()
    with pytest.raises(ConfigError, match="damaged"):
        type(lm_probe(world)).load(folder)
    (folder / NAME).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        type(lm_probe(world)).load(folder)


def lm_probe(lm: LM) -> Any:
    return lm.probe("The capital of France is", "next-token")


def classes() -> Iterator[type]:
    for found in pkgutil.walk_packages(editlab.__path__, "editlab."):
        if ".cli" in found.name or found.name.startswith("editlab.studies.ray"):
            continue
        module = importlib.import_module(found.name)
        yield from (c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == found.name)


def test_no_result_is_forgotten() -> None:
    shown = {"to_pandas", "plot", "_repr_html_"}
    missing = {c.__name__ for c in classes() if shown & set(vars(c)) and not issubclass(c, Saved)}
    assert missing <= ELSEWHERE
    assert all(dataclasses.is_dataclass(c) for c in classes() if issubclass(c, Saved) and c is not Saved)
