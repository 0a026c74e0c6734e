"""Methods that reproduce released code, against ports written from what that code does: one row at a time, float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import dense
from tiny_lm import make_lm
from torch import Tensor
from torch.func import functional_call

from editlab import LM, Fact
from editlab.edits.keys import contexts
from editlab.edits.preserve import covariances, preserving
from editlab.edits.settings import LocateEditSettings
from editlab.edits.targets import forms
from editlab.edits.values import optimise

WORDS = ("old", "town", "river", "people", "sea", "many", "years", "made", "new", "stone", "by", "the")
FACTS = [
    Fact(prompt="The capital of {} is", subject="Vinland", target_new="Rome"),
    Fact(prompt="{} is", subject="The young Anna", target_new="the harp"),
]
AT_THE_END = [  # of the prompt, where a tiny random model's answer can be moved to anything
    Fact(prompt="In the sea by {}", subject="Thule", target_new="is"),
    Fact(prompt="The people of {}", subject="Ys", target_new="the"),
]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    g = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=g)) for _ in range(200)]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(lines))
    return {"layer": 1, "steps": 8, "lr": 0.3, "contexts": {4: 3, 7: 2}, "stats_text": str(text), "stats_tokens": 1500}


class Plain:
    """A GPT-2 by transformers alone, with one prompt at a time."""

    def __init__(self, lm: LM, fact: Fact, layer: int) -> None:
        self.model, self.tokenizer, self.fact = lm.model, lm.tokenizer, fact
        self.block = self.model.transformer.h[layer]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def target(self) -> list[int]:
        return self.ids(f" {self.fact.target_new}")

    def place(self, text: str) -> int:
        """The token that ends the subject."""
        return len(self.ids(text[: text.index(self.fact.subject) + len(self.fact.subject)])) - 1

    def logits(self, text: str, more: list[int], at: Any, delta: Tensor) -> Tensor:
        """(T, V) with delta added to the output of `at` at the subject's last token."""
        place = self.place(text)

        def add(module: Any, args: Any, out: Any) -> Any:
            tensor = (out[0] if isinstance(out, tuple) else out).clone()
            tensor[0, place] = tensor[0, place] + delta
            return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

        handle = at.register_forward_hook(add)
        try:
            return self.model(torch.tensor([self.ids(text) + more])).logits[0]
        finally:
            handle.remove()

    def state(self, text: str, module: Any, *, inputs: bool) -> Tensor:
        """What goes into the module, or comes out of it, at the subject's last token."""
        kept: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, args, out: kept.append(args[0] if inputs else out))
        with torch.no_grad():
            self.model(torch.tensor([self.ids(text)]))
        handle.remove()
        value = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        return value[0, self.place(text)].double()


def shift(plain: Plain, at: Any, texts: list[str], size: float, s: dict[str, Any], top: int = 0) -> tuple[Tensor, int]:
    """The value's shift, and how many losses it took."""
    n = len(plain.target)
    delta = torch.zeros(plain.model.config.n_embd, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=s["lr"])
    essence = f"{plain.fact.subject} is a"
    base: Tensor | None = None
    count = 0
    for step in range(s["steps"]):
        nll, leads = torch.zeros((), dtype=torch.float64), []
        for text in texts:
            log_probs = plain.logits(text, plain.target[:-1], at, delta).log_softmax(-1)[-n:]
            nll = nll - log_probs[range(n), plain.target].mean() / len(texts)
            leads.append(log_probs.argmax(-1).tolist() == plain.target)
        now = plain.logits(essence, [], at, delta)[plain.place(essence)].log_softmax(-1)
        base = now.detach() if base is None else base
        kl = (now.exp() * (now - base)).sum()
        norm = delta.norm() if step else delta.sum() * 0
        loss = nll + s["kl_factor"] * kl + s["decay"] * norm / size**2
        count += all(leads[1:])
        if loss.item() < s["stop_loss"] or step == s["steps"] - 1 or (top and count == top):
            return delta.detach(), step + 1
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if float(delta.norm()) > s["clamp"] * size:
                delta *= s["clamp"] * size / delta.norm()
    raise AssertionError


def rome(lm: LM, fact: Fact, texts: list[str], inverse: Callable[[Tensor], Tensor], s: dict[str, Any]) -> Tensor:
    """(d_v, d_k) the update of kmeng01/rome: the mean of all keys, but the bare prompt's in the denominator."""
    plain = Plain(lm, fact, s["layer"])
    prompts = [fact.text, *(f"{text}. {fact.text}" for text in texts)]
    mlp = plain.block.mlp
    keys = torch.stack([plain.state(text, mlp.c_proj, inputs=True) for text in prompts])
    size = float(plain.state(fact.text, mlp, inputs=False).norm())
    delta, _ = shift(plain, mlp, prompts, size, s)
    u = inverse(keys.mean(0))
    return torch.outer(delta, u) / (u @ keys[0])


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_rome_legacy_is_the_released_rome(fact: Fact, quick: dict[str, Any]) -> None:
    """With the subject inside and at the very start of the prompt."""
    lm = make_lm("gpt2", dtype=torch.float64, initializer_range=0.2)
    entry = lm.edit(fact, "rome-legacy", **quick)
    settings = entry.edit.config
    assert (settings["clamp"], settings["stop_loss"], settings["decay"], settings["kl_factor"]) == (
        4,
        0.05,
        0.5,
        0.0625,
    )
    lm.undo(entry.id)
    metric = preserving(lm, 1, LocateEditSettings(**quick))
    texts = contexts(lm, per_length=quick["contexts"], seed=0, begin="rome")
    assert len(texts) == 5
    expected = rome(lm, fact, texts, lambda k: metric.solve(k[:, None])[:, 0], settings)
    (delta,) = entry.edit.deltas.values()
    found = dense(delta).double().T  # a Conv1D keeps its matrix transposed
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_romes_contexts_continue_the_end_of_text_token_and_count_it(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are those of the released code: all tokens of the row, whatever it begins with."""
    calls: list[tuple[list[list[int]], int]] = []
    generate = LM.generate_ids

    def recorded(lm: LM, batch: Any, new: int, **options: Any) -> Any:
        calls.append((batch.ids.tolist(), new))
        return generate(lm, batch, new, **options)

    monkeypatch.setattr(LM, "generate_ids", recorded)
    lm = make_lm("gpt2")
    assert len(contexts(lm, per_length={5: 2, 9: 3}, seed=0, begin="rome")) == 5
    assert calls == [([[lm.sink]] * 2, 4), ([[lm.sink]] * 3, 8)]
    contexts(lm, per_length={9: 1}, seed=0, begin="memit")
    ids = lm.tokens("The")[0]
    assert calls[2:] == [([ids], 9 - len(ids))]
    contexts(lm, per_length={9: 1}, seed=0)
    assert calls[3:] == [([[lm.sink, *ids]], 9 - len(ids))]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_memits_released_rows_are_its_mean_of_group_means(fact: Fact, quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2", dtype=torch.float64, initializer_range=0.2)
    settings = LocateEditSettings(**(quick | {"forms": "memit", "clamp": 0.75, "stop_loss": 0.05}))
    ((form,),) = forms(lm, [fact], 1, settings, preserving(lm, 1, settings))
    texts = contexts(lm, per_length=settings.contexts, seed=0, begin="memit")
    prompts = [fact.text, *(f"{text}. {fact.text}" for text in texts)]
    plain = Plain(lm, fact, 1)
    keys = torch.stack([plain.state(text, plain.block.mlp.c_proj, inputs=True) for text in prompts])
    assert torch.allclose(form.key, (keys[0] + keys[1:].mean(0)) / 2, atol=1e-6)
    h = plain.state(fact.text, plain.block, inputs=False)
    assert torch.allclose(form.scale.double(), h, atol=1e-4)
    (value,) = optimise(lm, 1, [form.target], settings)
    expected, steps = shift(plain, plain.block, prompts, float(h.norm()), settings.model_dump())
    assert len(value.losses) == steps == 8
    assert float((value.delta.double() - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("top", [1, 3])
def test_a_value_ends_when_the_target_has_led_often_enough(top: int, quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2", dtype=torch.float64, initializer_range=0.2)
    more = {"forms": "memit", "steps": 40, "lr": 1.0, "clamp": 1e3, "stop_loss": 0.0, "steps_on_top": top}
    more |= {"decay": 0.0, "kl_factor": 0.0}
    settings = LocateEditSettings(**(quick | more))
    texts = contexts(lm, per_length=settings.contexts, seed=0, begin="memit")
    found = [of_fact[0] for of_fact in forms(lm, AT_THE_END, 1, settings, preserving(lm, 1, settings))]
    values = optimise(lm, 1, [form.target for form in found], settings)
    for fact, form, value in zip(AT_THE_END, found, values, strict=True):
        prompts = [fact.text, *(f"{text}. {fact.text}" for text in texts)]
        plain = Plain(lm, fact, 1)
        size = float(form.scale.norm())
        expected, steps = shift(plain, plain.block, prompts, size, settings.model_dump(), top)
        assert len(value.losses) == steps < 40
        assert float((value.delta.double() - expected).norm() / expected.norm()) < 1e-2


def test_ft_l_is_the_released_loop_on_weight_and_bias(quick: dict[str, Any]) -> None:
    """Every target token at the last token of the bare prompt; two facts of different lengths are one padded batch."""
    lm = make_lm("gpt2", dtype=torch.float64, initializer_range=0.2)
    settings = {"layer": 1, "steps": 6, "lr": 1e-2, "norm_constraint": 2e-2}
    entry = lm.edit(FACTS, "ft-l", **settings)
    lm.undo(entry.id)
    tokenizer, model = lm.tokenizer, lm.model
    names = [f"transformer.h.1.mlp.c_proj.{part}" for part in ("weight", "bias")]
    assert list(entry.edit.deltas) == names
    start = [model.get_parameter(name).detach() for name in names]
    leaves = [w.clone().requires_grad_() for w in start]
    adam = torch.optim.Adam(leaves, lr=settings["lr"])
    for _ in range(settings["steps"]):
        adam.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for fact in FACTS:
            prompt = torch.tensor([tokenizer(fact.text, add_special_tokens=False)["input_ids"]])
            target = tokenizer(f" {fact.target_new}", add_special_tokens=False)["input_ids"]
            last = functional_call(model, dict(zip(names, leaves, strict=True)), (prompt,)).logits[0, -1]
            loss = loss - last.log_softmax(-1)[target].mean() / len(FACTS)
        loss.backward()
        adam.step()
        with torch.no_grad():
            for leaf, w in zip(leaves, start, strict=True):
                leaf.clamp_(w - settings["norm_constraint"], w + settings["norm_constraint"])
    for name, leaf, w in zip(names, leaves, start, strict=True):
        found, expected = entry.edit.deltas[name].dense, (leaf - w).detach()
        assert found is not None and float((found - expected).norm() / expected.norm()) < 1e-3
    assert float(entry.edit.deltas[names[0]].dense.abs().max()) == pytest.approx(2e-2, rel=1e-6)


def test_absolute_mu_is_added_to_the_diagonal(quick: dict[str, Any]) -> None:
    lm = make_lm("gpt2", dtype=torch.float64)
    mean = float((1.5 * lm.adapter.d_mlp * covariances(lm, [1], LocateEditSettings(**quick))[1]).diagonal().mean())
    shared = quick | {"lambda_rel": 1.5}
    updates = []
    for settings in ({"mu": 3.0}, {"mu_rel": 3.0 / mean}, {"mu": 0.0}):
        entry = lm.edit(FACTS, "memit-seq", **shared, **settings)
        updates.append(dense(next(iter(entry.edit.deltas.values()))))
        lm.undo(entry.id)
    assert float((updates[0] - updates[1]).norm() / updates[0].norm()) < 1e-5
    assert updates[0].norm() < 0.99 * updates[2].norm()


def test_a_cold_start_of_grace_is_noise_of_its_own_seed(quick: dict[str, Any]) -> None:
    lm = make_lm("llama")
    first = {}
    for start, seed in (("warm", 0), ("cold", 0), ("cold", 0), ("cold", 1)):
        entry = lm.edit(FACTS[0], "grace", layer=1, steps=1, start=start, seed=seed)
        values = entry.edit.tensors["values"][0]
        first.setdefault((start, seed), []).append(values)
        lm.undo(entry.id)
    (warm,), (cold, again), (other,) = first.values()
    assert torch.equal(cold, again) and not torch.equal(cold, other)
    assert float(cold.min()) >= 0 and float(cold.max()) < 1 and 0.35 < float(cold.mean()) < 0.65
    assert float((warm - cold).norm()) > 1
