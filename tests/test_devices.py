"""Everything runs on the device that the model is on, and no operation mixes two: on pretended devices, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_device import DEVICES, Elsewhere, WrongDevice, pretended
from tiny_lm import make_lm

from editlab import LM, Fact, registry
from editlab.errors import Interrupted
from editlab.evaluation.metrics import all_metrics
from editlab.progress import StepInfo
from editlab.runs.batch import Plan, StopRules, run_batch

Move = Callable[[LM], LM]
FACTS = [
    Fact(
        id=subject,
        prompt="The old town of {} is",
        subject=subject,
        target_new=target,
        target_true="Oslo",
        paraphrases=("In the old town",),
        neighbours=("The town is",),
        generation_prompts=("The river",),
    )
    for subject, target in (("the river", "in the sea"), ("many people", "new stone"), ("the years", "made by"))
]


@pytest.fixture
def statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where methods get their statistics, with a cache of their own."""
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    words = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
    text.write_text("\n\n".join(" ".join(words[i * j % 12] for j in range(1, 12)) + f" {i}" for i in range(200)))
    return {"lr": 0.3, "clamp": 2, "contexts": {4: 1}, "stats_tokens": 1000, "stats_text": str(text)}


def tiny() -> LM:
    return make_lm("llama", num_hidden_layers=2)


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
    there: Move,
    statistics: dict[str, Any],
) -> None:
    settings = quick(method, statistics)
    lm, facts = there(tiny()), FACTS[:1]
    first = lm.edit(facts, method, **settings)
    lm.undo(first.id)
    again = lm.edit(facts, method, **settings)  # its values are in the store by now
    assert again.edit.digest == first.edit.digest
    lm.edit(FACTS[1:2], method, **settings)
    lm.undo(again.id)
    lm.redo(again.id)
    assert torch.isfinite(lm.forward(lm.encode(["The old town"]))).all()


def test_a_run_that_was_stopped_goes_on(there: Move, statistics: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(
        method="memit",
        mode="sequential",
        settings=quick("memit", statistics),
        stop=StopRules(max_kl=99.0, max_perplexity=1e9, max_norm=99.0),
    )

    def stop(step: StepInfo) -> None:
        if step.task == "editing" and step.done == 2:
            raise Interrupted("Stopped.")

    with pytest.raises(Interrupted):
        run_batch(there(tiny()), FACTS, plan, tmp_path / "run", stop)
    assert len(run_batch(there(tiny()), FACTS, plan, tmp_path / "run").reports) == 3


def test_memories_replays_heads_and_packs(there: Move, statistics: dict[str, Any], tmp_path: Path) -> None:
    lm, settings = there(tiny()), quick("rome-nocov", statistics)
    first = lm.edit(FACTS[:1], "rome-nocov", **settings)
    lm.edit(FACTS[1:2], "rome-nocov", **settings)
    lm.undo(first.id, replay=True)
    lm.prune_heads("0.1, 1.2", gain=0.5)
    for method in ("grace", "wise"):
        lm.edit(FACTS[2:], method, layer=int(method == "wise"), **quick(method, statistics))
    assert lm.generate([FACTS[2].text], 4) and lm.route(FACTS[2].text)
    assert lm.fork().state_hash == lm.state_hash and lm.pristine().state_hash == lm.base_hash
    lm.save_edits(tmp_path / "pack")
    other = there(tiny())
    other.load_edits(tmp_path / "pack")
    assert other.state_hash == lm.state_hash
    there(make_lm("gpt2")).prune_heads([(0, 1)], means={(0, 1): torch.zeros(8)})


def test_an_evaluation_with_every_metric(there: Move, statistics: dict[str, Any]) -> None:
    lm = there(tiny())
    lm.edit(FACTS[0], "ft", steps=2, layer=1, norm_constraint=0.5, lr=0.05)
    lm.edit(FACTS[1], "grace", steps=2)
    for name in set(all_metrics()) - {"consistency"}:  # which needs a file of texts, and no model
        lm.evaluate(FACTS[:2], metrics=(name,), passages=2, max_new_tokens=3)


@pytest.mark.parametrize("probe", registry.names("probes"))
def test_a_probe(probe: str, there: Move) -> None:
    assert len(there(tiny()).probe(["The old", "In the sea"], probe).to_pandas())


@pytest.mark.parametrize("kind", ["residual", "mlp", "attention"])
def test_a_trace(kind: str, there: Move) -> None:
    settings = {"samples": 2, "min_gap": -1.0, "noise": 3.0}
    lm = there(tiny())
    assert lm.locate(FACTS[0].prompt, FACTS[0].subject, kind=kind, **settings).to_pandas() is not None
