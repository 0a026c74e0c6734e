"""What is handed to models and sessions by mistake ends in one sentence that says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_lm import make_lm

from editlab import LM
from editlab.errors import ConfigError
from editlab.hooks.batch import Batch
from editlab.hooks.session import Session


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama")


@pytest.fixture(scope="module")
def batch(lm: LM) -> Batch:
    return lm.encode(["the thing", "an island is"])


OnModel = Callable[[LM, Batch], Any]
BAD: dict[str, tuple[str, OnModel]] = {
    "forward of text": (r"lm.encode\('the'\)", lambda lm, b: lm.forward("the")),
    "forward of texts": ("was given a list", lambda lm, b: lm.forward(["the"])),
    "forward of ids": ("was given a Tensor", lambda lm, b: lm.forward(b.ids)),
    "forward of nothing": ("was given a NoneType", lambda lm, b: lm.forward(None)),
    "forward, no logits": ("read=None asks for no logits", lambda lm, b: lm.forward(b, None)),
    "forward, word": ("read='last' says no positions", lambda lm, b: lm.forward(b, "last")),
    "forward, int": ("read=0 says no positions", lambda lm, b: lm.forward(b, 0)),
    "forward, floats": ("says no positions", lambda lm, b: lm.forward(b, torch.tensor([0.5, 1.0]))),
    "capture of text": (r"lm.encode\('the'\)", lambda lm, b: lm.capture("the", ["z"])),
    "capture, number": ("5 names no site", lambda lm, b: lm.capture(b, [5])),
    "capture, nothing": ("None names no sites", lambda lm, b: lm.capture(b, None)),
    "capture, layer in quotes": ("'1' is no layer", lambda lm, b: lm.capture(b, [("z", "1")])),
    "capture, half a layer": ("1.5 is no layer", lambda lm, b: lm.capture(b, [("z", 1.5)])),
    "capture, truth": ("True is no layer", lambda lm, b: lm.capture(b, [("z", True)])),
    "capture, triple": ("names no site", lambda lm, b: lm.capture(b, [("z", 1, 2)])),
    "capture, typing error": ("Did you mean 'resid_post'", lambda lm, b: lm.capture(b, "residpost")),
    "prefix of text": (r"lm.encode\('the'\)", lambda lm, b: lm.prefix("the", 1)),
    "prefix, layer": ("'1' is no layer", lambda lm, b: lm.prefix(b, "1")),
    "prefix, column": ("Column None lies outside", lambda lm, b: lm.prefix(b, 1, None)),
    "cone of a batch": ("runs on a Cone, and was given a Batch", lambda lm, b: lm.run_from(b)),
    "rows of a batch": ("no row 5", lambda lm, b: b.rows([5])),
    "rows of a cone": ("no row 5", lambda lm, b: lm.prefix(b, 1, 1).rows([5])),
    "generate_ids of text": (r"lm.encode\('the'\)", lambda lm, b: lm.generate_ids("the", 2)),
    "generate of a number": ("5 is no text", lambda lm, b: lm.generate(5)),
    "generate, no tokens": ("max_new_tokens=0 is no number", lambda lm, b: lm.generate("the", 0)),
    "generate, word": ("max_new_tokens='2' is no number", lambda lm, b: lm.generate("the", "2")),
    "generate, option": ("Did you mean 'top_k'", lambda lm, b: lm.generate("the", 2, topk=3)),
    "tokens of a number": ("5 is no text", lambda lm, b: lm.tokens(5)),
    "conflicts of a number": ("no relation '5'", lambda lm, b: lm.conflicts(5)),
    "encode of numbers": ("5 is no text", lambda lm, b: lm.encode([5])),
    "encode of nothing": ("None is no text", lambda lm, b: lm.encode(None)),
    "encode, side": ("pad='middle' is not known", lambda lm, b: lm.encode("the", pad="middle")),
    "probe": ("5 is no text", lambda lm, b: lm.probe(5, "logit-lens")),
    "route": ("5 is no text", lambda lm, b: lm.route(5)),
    "edit": ("5 is no fact", lambda lm, b: lm.edit(5)),
    "evaluate": ("5 is no fact", lambda lm, b: lm.evaluate(5)),
    "heads, number": ("5 names no heads", lambda lm, b: lm.prune_heads(5)),
    "heads, numbers": (r"\[1\] names no heads", lambda lm, b: lm.prune_heads([1])),
    "heads, in quotes": ("names no heads", lambda lm, b: lm.prune_heads([("1", "2")])),
    "weight": ("no parameter 'nope'", lambda lm, b: lm.weight("nope")),
}

InSession = Callable[[Session, Batch], Any]
BAD_IN_SESSION: dict[str, tuple[str, InSession]] = {
    "run of text": (r"lm.encode\('the'\)", lambda s, b: s.run("the")),
    "generate of text": (r"lm.encode\('the'\)", lambda s, b: s.generate("the", 2)),
    "cone of a cone": ("was given a Cone", lambda s, b: s.cone(s.cone(b, 1), 1)),
    "no cones": ("needs a layer and a column", lambda s, b: s.cones(b, [])),
    "no columns": ("needs a layer and a column", lambda s, b: s.cones_at(b, [1], [])),
    "sites": (r"\['z', 'q'\] is no name of a site", lambda s, b: s.capture(["z", "q"], 1)),
    "when": ("when='later' is not known", lambda s, b: s.capture("z", 1, when="later")),
    "device": ("no device 'gpu'", lambda s, b: s.capture("z", 1, device="gpu")),
    "layer of what exists once": ("exists once", lambda s, b: s.capture("embed", [1])),
    "position in words": ("whole numbers", lambda s, b: (s.capture("z", 1, at="last"), s.run(b))),
    "half a position": ("whole numbers", lambda s, b: (s.capture("z", 1, at=0.5), s.run(b))),
    "half positions": ("whole numbers", lambda s, b: (s.capture("z", 1, at=torch.tensor([0.5, 1])), s.run(b))),
    "patch by nothing": ("cannot be None", lambda s, b: s.patch("z", 1, None)),
    "patch by a word": ("cannot be 'zero'", lambda s, b: s.patch("z", 1, "zero")),
    "patch that returns nothing": (
        "patch of 'mlp_out' in layer 1 returned None",
        lambda s, b: (s.patch("mlp_out", 1, lambda x: None), s.run(b)),
    ),
    "patch in attention that returns nothing": (
        "patch of 'pattern' in layer 1 returned None",
        lambda s, b: (s.patch("pattern", 1, lambda x: None), s.run(b)),
    ),
    "patch of several layers": (r"\[1, 2\] is no layer", lambda s, b: s.patch("z", [1, 2], 0.0)),
    "heads as a number": ("heads=2 names no heads", lambda s, b: s.patch("z", 1, 0.0, heads=2)),
    "half a head": (r"heads=\[1.5\] names no heads", lambda s, b: s.patch("z", 1, 0.0, heads=[1.5])),
    "during": ("during='never' is not known", lambda s, b: s.patch("z", 1, 0.0, during="never")),
    "ablation": ("with_=None is not known", lambda s, b: s.ablate("z", 1, with_=None)),
    "removal": ("not in force in this session", lambda s, b: s.remove(None)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_in_a_sentence(lm: LM, batch: Batch, case: str) -> None:
    words, call = BAD[case]
    with pytest.raises(ConfigError, match=words) as caught:
        call(lm, batch)
    assert caught.value.fix


@pytest.mark.parametrize("case", BAD_IN_SESSION)
def test_a_mistake_in_a_session_is_told_in_a_sentence(lm: LM, batch: Batch, case: str) -> None:
    words, call = BAD_IN_SESSION[case]
    with lm.session() as s, torch.no_grad(), pytest.raises(ConfigError, match=words) as caught:
        call(s, batch)
    assert caught.value.fix


def test_what_is_removed_twice_or_by_another_session_is_refused(lm: LM) -> None:
    with lm.session() as s:
        wish = s.patch("z", 1, 0.0)
        with lm.session() as inner, pytest.raises(ConfigError, match="not in force in this session"):
            inner.remove(wish)
        s.remove(wish)
        with pytest.raises(ConfigError, match="not in force in this session"):
            s.remove(wish)


@pytest.mark.parametrize("use", ["run", "cone", "generate"])
def test_a_session_that_is_not_open_runs_nothing(lm: LM, batch: Batch, use: str) -> None:
    s = lm.session()
    with pytest.raises(ConfigError, match="not open"):
        {"run": lambda: s.run(batch), "cone": lambda: s.cone(batch, 1), "generate": lambda: s.generate(batch, 1)}[use]()


def test_one_site_needs_no_list(lm: LM, batch: Batch) -> None:
    listed = lm.capture(batch, ["resid_post", ("z", 1)])
    bare, pair = lm.capture(batch, "resid_post"), lm.capture(batch, ("z", 1))
    assert list(bare) == [("resid_post", n) for n in range(3)] and list(pair) == [("z", 1)]
    assert torch.equal(bare["resid_post", 2], listed["resid_post", 2])
    assert torch.equal(pair["z", 1], listed["z", 1])
    assert list(lm.capture(batch, ("embed", "final"))) == ["embed", "final"]  # two names are no pair with a layer
