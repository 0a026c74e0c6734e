"""Dropout is off in whatever is read, edited or measured, also where the model that was handed in was being trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_lm import make_lm
from torch import nn

from editlab import LM, registry
from editlab.edits.value_store import afresh
from editlab.hooks.column import column
from editlab.hooks.detect import detect
from editlab.hooks.session import Session
from editlab.probes.parity import parity
from editlab.runs.memory.learner import Learner

TEXTS = ["the old town is in", "the thing that the river is"]
FACT = {"prompt": "The old town of {} is", "subject": "the river", "target_new": "in the sea"}
DROPPING = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "llama": {"attention_dropout": 0.1},
    "opt": {"dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.1, "max_position_embeddings": 512},
}
QUICK: dict[str, Any] = {"steps": 2, "contexts": {3: 1}, "stats_tokens": 600, "negatives": 4}


def trained(family: str = "gpt2") -> tuple[LM, nn.Module]:
    """An LM made from a model in training mode, and that model."""
    source = make_lm(family, **DROPPING[family])
    model = source.model.train()
    return LM(model, source.tokenizer, name=source.name), model


def edited(lm: LM, method: str) -> torch.Tensor:
    names = registry.get(method).Config.model_fields
    with afresh():
        lm.edit(FACT, method, **{name: value for name, value in QUICK.items() if name in names})
    return lm.forward(lm.encode(TEXTS))


def patched(lm: LM) -> torch.Tensor:
    with lm.session() as s, torch.no_grad():
        s.patch("mlp_out", 1, lambda x: 0.5 * x)
        return s.run(lm.encode(TEXTS)).logits


def called_in_a_session(lm: LM) -> torch.Tensor:
    with lm.session(), torch.no_grad():
        return lm.model(lm.encode(TEXTS).ids).logits


def learned(lm: LM) -> torch.Tensor:
    learner = Learner(lm)
    losses = [learner.step([tuple(lm.tokens(text)[0]) for text in TEXTS], 1e-2) for _ in range(3)]
    return torch.cat([torch.tensor(losses), learner.lm.forward(lm.encode(TEXTS)).flatten()])


def columns(lm: LM) -> torch.Tensor:
    with lm.session() as s, torch.no_grad():
        batch = lm.encode(TEXTS)
        found = column(s, batch)
        rows = torch.arange(batch.n_rows)
        return found.run(1, rows, lambda layer: found.attention[rows, layer])


def nnsight_logits(lm: LM) -> torch.Tensor:
    wrapped = lm.to_nnsight()
    with torch.no_grad(), wrapped.trace(lm.encode(TEXTS[0]).ids):
        logits = wrapped.lm_head.output.save()
    return logits


def bridge_logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.to_bridge()(lm.encode(TEXTS[0]).ids)


ENTRIES: dict[str, Callable[[LM], Any]] = {
    "forward": lambda lm: lm.forward(lm.encode(TEXTS)),
    "capture": lambda lm: lm.capture(lm.encode(TEXTS), ["resid_post"])["resid_post", 2],
    "pattern": lambda lm: lm.capture(lm.encode(TEXTS), [("pattern", 1)])["pattern", 1],
    "session": patched,
    "a call of the view in a session": called_in_a_session,
    "cone": lambda lm: lm.run_from(lm.prefix(lm.encode(TEXTS), 1, 2)).logits,
    "generate": lambda lm: lm.generate(TEXTS, 8),
    "sample": lambda lm: lm.generate(TEXTS, 8, do_sample=True, generator=torch.Generator().manual_seed(1)),
    "evaluate": lambda lm: lm.evaluate([FACT], metrics=("efficacy", "drift")).to_pandas(),
    "locate": lambda lm: lm.locate("The river {} is", "is", samples=2, min_gap=0).to_pandas(),
    "parity": parity,
    "column": columns,
    "training a copy": learned,
    "own weights": lambda lm: lm.on_own_weights().forward(lm.encode(TEXTS)),
    "fork": lambda lm: lm.fork().forward(lm.encode(TEXTS)),
    "pristine": lambda lm: (lm.edit(FACT, "ft", steps=2), lm.pristine().forward(lm.encode(TEXTS)))[1],
    "nnsight": nnsight_logits,
    "bridge": bridge_logits,
    **{f"edit by {name}": lambda lm, name=name: edited(lm, name) for name in registry.names()},
    **{f"probe {name}": lambda lm, name=name: lm.probe(TEXTS, name).to_pandas() for name in registry.names("probes")},
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pd.DataFrame):
        return bool(a.equals(b))
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_a_model_handed_in_in_training_mode_gives_what_it_gives_in_eval_mode(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "eval"))
    right = ENTRIES[entry](make_lm("gpt2", **DROPPING["gpt2"]))
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "train"))
    lm, model = trained()
    torch.manual_seed(5)
    assert same(ENTRIES[entry](lm), right)
    assert all(module.training for module in model.modules())  # the caller's own is as it was


def test_conflicts_are_those_of_the_model_without_dropout() -> None:
    world = LM.from_pretrained("factworld-gpt2")
    model = world.on_own_weights().model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    settings = {"subjects": 20, "draws": 1}
    right = world.conflicts("capital", **settings)
    assert LM(model.train(), world.tokenizer).conflicts("capital", **settings).rows == right.rows


@pytest.mark.parametrize("family", list(DROPPING))
def test_two_equal_passes_are_equal_and_copies_are_in_eval_mode(family: str) -> None:
    lm, model = trained(family)
    batch = lm.encode(TEXTS)
    assert torch.equal(lm.forward(batch), lm.forward(batch))
    dropped = model(batch.ids, attention_mask=batch.mask).logits
    assert not torch.equal(model(batch.ids, attention_mask=batch.mask).logits, dropped)  # the caller's still drops
    for copy in (lm, lm.fork(), lm.on_own_weights(), lm.on_own_weights().fork()):
        assert not any(module.training for module in copy.model.modules())


@pytest.mark.parametrize("which", ["all of it", "one block"])
def test_a_view_that_someone_trains_is_put_back_with_one_warning(which: str) -> None:
    lm = make_lm("gpt2", **DROPPING["gpt2"])
    batch = lm.encode(TEXTS)
    right = lm.forward(batch)
    copy = lm.on_own_weights()
    for each in (lm, copy):
        (each.model if which == "all of it" else each.model.transformer.h[1]).train()
        with pytest.warns(UserWarning, match="put back into eval mode") as told:
            assert torch.equal(each.forward(batch), right)
            assert torch.equal(each.forward(batch), right)
        assert len(told) == 1 and not any(module.training for module in each.model.modules())
    copy.model.train()
    with pytest.warns(UserWarning, match="put back"):
        assert edited(copy, "ft").shape == right.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.forward(batch)


def test_a_session_on_a_bare_model_reads_it_in_eval_mode() -> None:
    source = make_lm("gpt2", **DROPPING["gpt2"])
    batch, model = source.encode(TEXTS), source.model
    right = source.forward(batch)
    with Session(model.train(), detect(model)) as s, torch.no_grad(), pytest.warns(UserWarning, match="put back"):
        assert torch.equal(s.run(batch).logits, right)
