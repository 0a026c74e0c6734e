"""Routed layers: decided once per sequence by its prompt, row by row, and otherwise as if they were not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_lm import make_lm
from torch import Tensor
from transformers import DynamicCache
from turner import Turner

from editlab import LM
from editlab.hooks.batch import pad_rows
from editlab.hooks.kv_cache import as_argument, cache_made
from editlab.hooks.routing import prompt_ends

TEXTS = ["The old town by the river", "In the sea", "many years and the stone"]
FAMILIES = ["gpt2", "llama", "opt", "gptj", "gpt_neox", "gemma2"]


def routed(family: str, layer: Turner) -> tuple[LM, str]:
    lm = make_lm(family)
    path = lm.adapter.layers[1].down
    lm.routes.set({path: layer}, "test")
    return lm, path


def between(lm: LM, path: str, texts: list[str]) -> float:
    """A limit that some of the texts exceed and some do not, far from all of them."""
    a, b, *_ = scores(lm, path, texts).sort().values.tolist()
    return (a + b) / 2


def scores(lm: LM, path: str, texts: list[str]) -> Tensor:
    lm.forward(lm.encode(texts))
    return lm.routes.last[path].scores[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_routed_is_untouched_in_every_bit(family: str) -> None:
    lm, _ = routed(family, Turner(torch.inf))
    batch = lm.encode(TEXTS)
    assert torch.equal(lm.forward(batch), make_lm(family).forward(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_goes_its_own_way_whatever_shares_its_batch(family: str) -> None:
    lm, path = routed(family, Turner())
    limit = between(lm, path, TEXTS)
    lm, path = routed(family, Turner(limit))
    plain = make_lm(family)
    together = lm.forward(lm.encode(TEXTS))[:, -1]
    chosen = lm.routes.last[path].chosen.tolist()
    assert sorted(set(chosen)) == [-1, 0]
    for i, text in enumerate(TEXTS):
        alone = lm.forward(lm.encode([text]))[0, -1]
        assert torch.allclose(together[i], alone, atol=1e-4)
        is_plain = torch.allclose(alone, plain.forward(plain.encode([text]))[0, -1], atol=1e-6)
        assert is_plain == (chosen[i] == -1)


@pytest.mark.parametrize("pad", ["left", "right"])
def test_pads_do_not_decide(pad: str) -> None:
    lm, path = routed("llama", Turner())
    lm.forward(lm.encode(TEXTS, pad=pad))  # type: ignore[arg-type]
    together = lm.routes.last[path].scores[:, 0]
    assert together.tolist() == pytest.approx([float(scores(lm, path, [t])[0]) for t in TEXTS], rel=1e-5)


def test_an_answer_that_is_scored_does_not_decide() -> None:
    lm, path = routed("gpt2", Turner())
    ids, _ = lm.tokens(TEXTS[0])
    short = float(scores(lm, path, [lm.tokenizer.decode(ids[:4])])[0])
    lm.forward(pad_rows([ids], prompts=[4]))
    assert float(lm.routes.last[path].scores[0]) == pytest.approx(short, rel=1e-6)
    lm.forward(pad_rows([ids]))
    assert float(lm.routes.last[path].scores[0]) != pytest.approx(short, rel=1e-6)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_generation_keeps_to_the_prompt_s_decision(family: str, beams: int, use_cache: bool) -> None:
    probe, path = routed(family, Turner())
    limit = between(probe, path, TEXTS)
    layer = Turner(limit)
    lm, path = routed(family, layer)
    batch = lm.encode(TEXTS)
    with lm.session() as s:
        new = s.generate(batch, 6, num_beams=beams, use_cache=use_cache, eos_token_id=None)
    if use_cache:
        assert layer.decisions == 1
    always, never = Turner(), Turner(torch.inf)
    for row, is_routed in enumerate((scores(lm, path, TEXTS) > limit).tolist()):
        other, _ = routed(family, always if is_routed else never)
        with other.session() as s:
            alone = s.generate(other.encode([TEXTS[row]]), 6, num_beams=beams, use_cache=use_cache, eos_token_id=None)
        assert new[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("hand_in", [as_argument, lambda model, cache: {"past_key_values": cache}], ids=["new", "old"])
def test_two_caches_keep_apart(hand_in: Callable[..., dict[str, Any]]) -> None:
    probe, path = routed("llama", Turner())
    limit = between(probe, path, TEXTS[:2])
    lm, path = routed("llama", Turner(limit))
    chosen = {}
    with torch.no_grad():
        caches = []
        for text in TEXTS[:2]:
            cache = DynamicCache()
            lm.model(lm.encode([text]).ids, use_cache=True, **hand_in(lm.model, cache))
            chosen[text] = int(lm.routes.last[path].chosen[0])
            caches.append(cache)
        assert sorted(chosen.values()) == [-1, 0]
        for text, cache in zip(TEXTS[:2], caches, strict=True):
            step = lm.model(torch.tensor([[5]]), use_cache=True, **hand_in(lm.model, cache)).logits
            whole = lm.encode([text]).ids
            with prompt_ends(torch.tensor([whole.shape[1]])):
                full = lm.model(torch.cat([whole, torch.tensor([[5]])], 1)).logits
            assert torch.allclose(step[:, -1], full[:, -1], atol=1e-5)


def test_a_cache_that_the_model_made_keeps_the_decision_too() -> None:
    layer = Turner()
    lm, _ = routed("llama", layer)
    with torch.no_grad():
        first = lm.model(lm.encode(TEXTS[:1]).ids, use_cache=True)
        lm.model(torch.tensor([[5]]), use_cache=True, **as_argument(lm.model, cache_made(first)))
    assert layer.decisions == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("cut", [0, 2])
def test_a_cone_decides_as_the_full_forward(family: str, cut: int) -> None:
    probe, path = routed(family, Turner())
    limit = between(probe, path, TEXTS)
    lm, path = routed(family, Turner(limit))
    batch = lm.encode(TEXTS)
    full = lm.forward(batch)
    decided = lm.routes.last[path]
    cone = lm.prefix(batch, 1, cut)
    again = lm.run_from(cone).logits
    assert again is not None
    assert torch.allclose(again, full[:, cut:], atol=1e-5)
    some = lm.run_from(cone.rows([2, 0])).logits
    assert some is not None
    assert torch.allclose(some, full[[2, 0], cut:], atol=1e-5)
    assert lm.routes.last[path].chosen.tolist() == decided.chosen[[2, 0]].tolist()


def test_nothing_is_left_behind() -> None:
    lm, path = routed("llama", Turner())
    keys = list(lm.model.state_dict())
    lm.routes.set({}, "")
    plain = make_lm("llama")
    assert "forward" not in vars(lm.model.get_submodule(path))
    assert list(lm.model.state_dict()) == keys == list(plain.model.state_dict())
    assert not lm.model._forward_pre_hooks
    assert not lm.model._forward_hooks
    batch = lm.encode(TEXTS)
    assert torch.equal(lm.forward(batch), plain.forward(batch))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
