"""Everything runs on the device that the model is on, and no operation mixes two: on pretended devices, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from pretended_device import Elsewhere, WrongDevice, pretended
from tiny_lm import make_tokenizer

from editlab import LM, Fact, registry

DEVICES = ("cuda", "mps")
MakeLM = Callable[..., LM]
FACTS = [
    Fact(prompt="The old town of {} is", subject=subject, target_new=target, paraphrases=("In the old town",))
    for subject, target in (("the river", "in the sea"), ("many people", "new stone"), ("the years", "made by"))
]


@pytest.fixture(params=DEVICES)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLM]:
    """Makes tiny models on a pretended device."""
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    sizes = {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    with pretended(request.param, monkeypatch) as moved:
        yield lambda family="llama", **changes: LM(
            moved(make_model(family, **(sizes | changes))), tokenizer, name="tiny"
        )


@pytest.fixture
def statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where methods get their statistics, with a cache of their own."""
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    words = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
    text.write_text("\n\n".join(" ".join(words[i * j % 12] for j in range(1, 12)) + f" {i}" for i in range(200)))
    return {"lr": 0.3, "clamp": 2, "contexts": {4: 1}, "stats_tokens": 1000, "stats_text": str(text)}


def quick(method: str, statistics: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method that do everything in little time."""
    chosen = statistics | {"steps": 3, "negatives": 4, "prose": 1, "left_out": 1, "openings": 1}
    fields = registry.get(method).Config.model_fields
    return {name: value for name, value in chosen.items() if name in fields}


@pytest.mark.parametrize("device", DEVICES)
def test_the_pretended_device_refuses_what_a_real_one_does(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(device, monkeypatch):
        there, here = torch.ones(3, device=f"{device}:0"), torch.ones(3)
        assert isinstance(there, Elsewhere) and there.device.type == device and not isinstance(here, Elsewhere)
        for mixed in (lambda: there + here, lambda: torch.stack([there, here]), lambda: here[there.bool()]):
            with pytest.raises(WrongDevice):
                mixed()
        with pytest.raises(WrongDevice):
            there.numpy()
        with pytest.raises(WrongDevice):
            torch.multinomial(there, 1, generator=torch.Generator())
        if device == "mps":
            with pytest.raises(WrongDevice):
                there.double()
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
        assert there[torch.tensor([0, 2])].tolist() == [1, 1]
        leaf = torch.tensor([1.0, 2.0], device=f"{device}:0", requires_grad=True)
        (leaf.square().sum() * 2).backward()
        assert leaf.grad is not None and leaf.grad.device.type == device and leaf.grad.tolist() == [4, 8]


@pytest.mark.parametrize("method", registry.names())
def test_an_edit_undone_and_made_again(
    method: str,
    elsewhere: MakeLM,
    statistics: dict[str, Any],
) -> None:
    settings = quick(method, statistics)
    lm, facts = elsewhere(), FACTS[:1]
    first = lm.edit(facts, method, **settings)
    lm.undo(first.id)
    again = lm.edit(facts, method, **settings)  # its values are in the store by now
    assert again.edit.digest == first.edit.digest
    lm.edit(FACTS[1:2], method, **settings)
    lm.undo(again.id)
    lm.redo(again.id)
    assert torch.isfinite(lm.forward(lm.encode(["The old town"]))).all()
