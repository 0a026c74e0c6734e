"""A side memory answers the prompts that its thresholds were made of, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import make_lm
from torch import Tensor

from editlab import Fact
from editlab.memories.kinds.grace import Code, Layer, _add, distances

N, D = 60, 1536  # more rows than torch.cdist subtracts, and keys as long as those of a real model


@pytest.fixture
def keys() -> Tensor:
    """(N, D) long and near each other: a common part of length 200, own parts of length 1."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(N, D, generator=generator) / D**0.5
    return own + 200 * torch.ones(D) / D**0.5


def test_distances_are_those_of_float64(keys: Tensor) -> None:
    exact = (keys[:, None].double() - keys[None].double()).square().sum(-1).sqrt()
    assert float((distances(keys, keys) - exact).abs().max()) < 1e-5


def test_every_key_that_a_ball_grew_to_is_answered(keys: Tensor) -> None:
    codes: list[Code] = []
    far = [Code(-(2.0 + i) * keys[i], torch.zeros(1), 1.0, (i,)) for i in range(26)]
    for code in [*far, *(Code(key, torch.zeros(1), 1.0, (99,)) for key in keys)]:
        _add(codes, code)
    grown = [code for code in codes if code.target == (99,)]
    assert len(codes) > 25 and any(code.radius > 1.0 for code in grown)
    layer = Layer(codes, torch.device("cpu"))
    # As other batches give them: each row moved in its last bits.
    rounded = keys * (1 + 2e-6 * torch.randn(keys.shape, generator=torch.Generator().manual_seed(1)))
    for queries in (keys, rounded):
        chosen, _ = layer.decide(torch.ones(len(queries), 1, dtype=torch.bool), (queries[:, None],))
        assert bool((chosen >= 0).all())
        assert {codes[int(i)].target for i in chosen} == {(99,)}


def test_a_ratio_of_one_still_answers_the_prompts_of_the_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))
    lm = make_lm("llama")
    facts = [
        Fact(prompt="The capital of {} is", subject=name, target_new="Rome") for name in ("Ys", "Thule", "Vinland")
    ]
    quick = {"layer": 1, "steps": 10, "lr": 0.05, "contexts": {}, "pool": 8, "negatives": 2, "near": 0}
    for fact in facts:
        lm.edit(fact, "wise", ratio=1.0, shard_size=1, mode="retrieve", merge_every=1, **quick)
    (layer,) = lm.routes.layers.values()
    module = lm.model.get_submodule(next(iter(lm.routes.layers)))
    for x in (x for bank in layer.banks for x in bank.inputs):  # type: ignore[attr-defined]
        with torch.no_grad():
            parts = layer.look(x[None], type(module).forward(module, x)[None], exact=True)
        chosen, _ = layer.decide(torch.ones(1, len(x), dtype=torch.bool), parts)
        assert int(chosen) >= 0
