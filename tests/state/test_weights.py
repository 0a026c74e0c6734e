"""Views: sharing, rebinding, ties, hashes, wrappers, threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload
from nnsight import NNsight
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from editlab.errors import EditFailed, EditlabError, UnknownName
from editlab.state.hashes import fingerprint, tensor_sha256
from editlab.state.sharing import structural_clone, weight_sources
from editlab.state.weights import WeightView

IDS = torch.tensor([[1, 5, 9, 2, 7]])
DOWN = "transformer.h.0.mlp.c_proj.weight"
EMBED = "transformer.wte.weight"


def gpt2(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=32, architectures=["GPT2LMHeadModel"]
    )
    return GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        architectures=["LlamaForCausalLM"],
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def state_of(model: nn.Module) -> dict[str, tuple[int, int, torch.Tensor]]:
    return {n: (id(p), p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, int, torch.Tensor]]) -> None:
    for name, p in model.named_parameters():
        identity, pointer, value = before[name]
        assert (id(p), p.data_ptr()) == (identity, pointer)
        assert torch.equal(p, value)


def noise(p: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return p + torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p)


# --- structural_clone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
def test_clone_shares_tensors_and_ties_but_not_the_config(make: Callable[[], nn.Module]) -> None:
    model = make()
    clone = structural_clone(model)
    assert {id(t) for t in [*clone.parameters(), *clone.buffers()]} == {
        id(t) for t in [*model.parameters(), *model.buffers()]
    }
    assert clone.config is not model.config
    assert {id(m) for m in clone.modules()}.isdisjoint(id(m) for m in model.modules())
    assert torch.equal(clone(IDS).logits, model(IDS).logits)


def test_capture_hooks_that_transformers_installs_do_not_block_a_clone() -> None:
    model = gpt2()
    model(IDS, output_hidden_states=True)
    assert any(m._forward_hooks for m in model.modules())
    assert len(structural_clone(model)(IDS, output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "stub", "nnsight"])
def test_an_open_session_or_a_wrapper_blocks_a_clone(kind: str) -> None:
    model = gpt2()
    block = model.transformer.h[0]
    if kind == "hook":
        block.register_forward_hook(lambda *a: None)
    elif kind == "pre-hook":
        block.register_forward_pre_hook(lambda *a: None)
    elif kind == "stub":
        block.forward = lambda x, *a, **k: x
    else:
        NNsight(model)
    with pytest.raises(EditlabError, match="Cannot make a view"):
        structural_clone(model)


def test_offloaded_weights_stay_shared_are_hashed_and_cannot_be_edited() -> None:
    plain, offloaded = gpt2(), gpt2()
    cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).device.type == "meta"
    view = WeightView(offloaded)
    assert torch.equal(view.model(IDS).logits, plain(IDS).logits)
    assert view.base_hash == WeightView(plain).base_hash
    with pytest.raises(EditlabError, match="offloaded"):
        view.write(DOWN, torch.zeros(64, 16))


def test_a_model_s_content_is_its_parameters_and_the_buffers_that_are_saved() -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("derived", torch.ones(2), persistent=False)
    model.register_buffer("absent", None)
    assert set(weight_sources(model)) == {"weight", "bias", "kept"}


# --- hashes -------------------------------------------------------------------------------------------


def test_tensor_hash_sees_content_shape_and_dtype_and_not_the_layout() -> None:
    t = torch.arange(12.0).reshape(3, 4)
    assert tensor_sha256(t) == tensor_sha256(t.clone())
    assert tensor_sha256(t.T) == tensor_sha256(t.T.contiguous())
    different = [t, t.reshape(4, 3), t.T, t.double(), t.bfloat16(), t.half(), t + 1e-6, t.long(), -0.0 * t]
    assert len({tensor_sha256(x) for x in different}) == len(different)
    assert tensor_sha256(torch.zeros(0, 3)) != tensor_sha256(torch.zeros(3, 0))
    assert tensor_sha256(torch.tensor(1.0)) != tensor_sha256(torch.tensor([1.0]))
    assert tensor_sha256(torch.tensor([True, False]))
    with pytest.raises(EditlabError, match="meta"):
        tensor_sha256(torch.zeros(2, device="meta"))
    with pytest.raises(EditlabError, match="Cannot hash"):
        tensor_sha256(torch.eye(3).to_sparse())


def test_fingerprint_depends_on_names_and_values_and_not_on_the_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a})
    assert len({fingerprint(x) for x in ({"a": a, "b": b}, {"a": b, "b": a}, {"a": a}, {"a": a, "c": b}, {})}) == 5


def test_hash_equals_the_base_hash_exactly_when_nothing_is_edited() -> None:
    view = WeightView(gpt2())
    new = noise(view.base(DOWN))
    assert view.current_hash == view.base_hash == WeightView(gpt2()).base_hash
    predicted = view.hash_with({DOWN: new})
    view.write(DOWN, new)
    assert view.current_hash == predicted != view.base_hash
    view.write(DOWN, noise(view.base(DOWN), 2))
    assert view.current_hash not in (predicted, view.base_hash)
    view.write(DOWN, new)
    assert view.current_hash == predicted
    view.write(DOWN, view.base(DOWN).clone())  # equal to the base: shared again
    assert view.current_hash == view.base_hash
    assert view.edited == []
    assert view.current(DOWN) is view.base(DOWN)


def test_only_edited_tensors_are_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    view = WeightView(gpt2())
    _ = view.base_hash
    hashed: list[torch.Size] = []
    real = tensor_sha256
    for module in ("weights", "hashes"):
        monkeypatch.setattr(f"editlab.state.{module}.tensor_sha256", lambda t: (hashed.append(t.shape), real(t))[1])
    view.write(DOWN, noise(view.base(DOWN)))
    _ = view.current_hash, view.current_hash, view.fork().base_hash
    assert hashed == [view.base(DOWN).shape]


# --- writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_write_and_undo_touch_the_view_alone(make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    base = make(dtype)
    before, logits = state_of(base), base(IDS).logits
    view = WeightView(base)
    heard: list[tuple[str, ...]] = []
    view.on_change.append(heard.append)
    name = view.names()[3]
    view.write(name, noise(view.base(name)).double())
    assert view.edited == [name]
    assert view.current(name).dtype == dtype
    assert not view.current(name).requires_grad
    assert dict(view.model.named_parameters())[name] is view.current(name)
    assert not torch.equal(view.model(IDS).logits, logits)
    assert torch.equal(base(IDS).logits, logits)
    own = view.current(name)
    view.write(name, noise(view.base(name), 2))
    assert view.current(name) is own  # in place from the second write on
    view.write(name, None)
    assert torch.equal(view.model(IDS).logits, logits)
    assert {id(p) for p in view.model.parameters()} == {id(p) for p in base.parameters()}
    assert_untouched(base, before)
    assert heard == [(name,)] * 3


def test_requires_grad_is_kept_and_training_works_after_a_write_in_inference_mode() -> None:
    view = WeightView(gpt2().requires_grad_(True))
    with torch.inference_mode():
        view.write(DOWN, noise(view.base(DOWN)))
        view.write(DOWN, noise(view.base(DOWN), 2))
    assert view.current(DOWN).requires_grad
    view.model(IDS).logits.sum().backward()
    assert view.current(DOWN).grad is not None


def test_a_tied_parameter_has_one_name_and_changes_in_both_places() -> None:
    view = WeightView(gpt2())
    assert EMBED in view.names()
    assert "lm_head.weight" not in view.names()
    assert view.resolve("lm_head.weight") == EMBED
    view.write("lm_head.weight", noise(view.base(EMBED)))
    assert view.model.lm_head.weight is view.model.transformer.wte.weight is view.current(EMBED)
    assert view.edited == [EMBED]
    with pytest.raises(EditlabError, match="one tied parameter"):
        view.write_all({EMBED: None, "lm_head.weight": None})
    view.write(EMBED, None)
    assert view.model.lm_head.weight is view.model.transformer.wte.weight is view.base(EMBED)


def test_writes_that_make_no_sense_are_refused_in_words_and_change_nothing() -> None:
    base = gpt2(torch.float16)
    base.transformer.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    base.transformer.register_parameter("wide", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    view = WeightView(base)
    heard: list[tuple[str, ...]] = []
    view.on_change.append(heard.append)
    bad = {
        "shape": (DOWN, torch.zeros(16, 64), EditlabError),
        "not finite": (DOWN, torch.full((64, 16), float("nan")), EditFailed),
        "too large": (DOWN, torch.full((64, 16), 1e6), EditFailed),
        "quantised": ("transformer.packed", torch.zeros(2), EditlabError),
        "stored as torch.int64": ("transformer.wide", torch.zeros(2), EditlabError),
        "Did you mean 'transformer.h.0.mlp.c_proj": ("transformer.h.0.mlp.c_prj.weight", None, UnknownName),
    }
    for words, (name, value, kind) in bad.items():
        with pytest.raises(kind, match=words):
            view.write_all({EMBED: noise(view.base(EMBED)), name: value})
    assert view.edited == []
    assert not heard


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_write_that_breaks_midway_leaves_every_weight(monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    view = WeightView(gpt2())
    other = "transformer.h.1.mlp.c_proj.weight"
    third = "transformer.h.1.attn.c_proj.weight"
    view.write_all({DOWN: noise(view.base(DOWN)), third: noise(view.base(third))})
    before = state_of(view.model)
    own, digest = view.current(DOWN), view.current_hash
    heard: list[tuple[str, ...]] = []
    view.on_change.append(heard.append)
    calls = 0
    real = nn.Module.modules

    def breaking(self: nn.Module) -> object:
        nonlocal calls
        for module in real(self):
            calls += 1
            if calls == 8 * fails_at:
                raise KeyboardInterrupt
            yield module

    monkeypatch.setattr(nn.Module, "modules", breaking)
    with pytest.raises(KeyboardInterrupt):
        view.write_all({DOWN: noise(view.base(DOWN), 5), other: noise(view.base(other)), third: None})
    monkeypatch.undo()
    assert_untouched(view.model, before)
    assert view.current(DOWN) is own
    assert view.current_hash == digest and not heard


def test_callbacks_hear_of_each_write_and_cannot_break_it() -> None:
    view = WeightView(gpt2())
    heard: list[tuple[str, ...]] = []
    view.on_change += [lambda names: 1 / 0, heard.append]  # type: ignore[list-item]
    view.write("lm_head.weight", noise(view.base(EMBED)))
    assert heard == [(EMBED,)]
    assert view.edited == [EMBED]


def test_forks_are_independent() -> None:
    base = gpt2()
    view = WeightView(base)
    view.write(DOWN, noise(view.base(DOWN)))
    twin = view.fork()
    assert twin.current_hash == view.current_hash
    assert twin.current(DOWN) is not view.current(DOWN)
    twin.write(DOWN, None)
    twin.write(EMBED, noise(view.base(EMBED)))
    assert (view.edited, twin.edited) == ([DOWN], [EMBED])
    assert torch.equal(view.model(IDS).logits, view.model(IDS).logits)
    assert twin.base(DOWN) is view.base(DOWN) is dict(base.named_parameters())[DOWN]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_model_on_its_own_weights_equals_the_view_and_shares_nothing(make: Callable[[], nn.Module]) -> None:
    base = make()
    view = WeightView(base)
    name = next(n for n in view.names() if "mlp" in n and n.endswith("weight"))
    view.write(name, noise(view.base(name)))
    before = state_of(base)
    twin = view.on_own_weights()
    assert torch.equal(twin(IDS).logits, view.model(IDS).logits)
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(
        p.data_ptr() for m in (view.model, base) for p in m.parameters()
    )
    assert all(p.requires_grad == q.requires_grad for p, q in zip(twin.parameters(), make().parameters(), strict=True))
    own = view.model(IDS).logits
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert torch.equal(view.model(IDS).logits, own)
    assert_untouched(base, before)


def test_a_view_tells_how_much_it_holds_itself() -> None:
    view = WeightView(gpt2())
    assert "0 of" in repr(view) and "0.0 MiB" in repr(view)
    view.write(DOWN, noise(view.base(DOWN)))
    size = view.base(DOWN).numel() * 4 / 2**20
    assert f"1 of {len(view.names())} edited, {size:.1f} MiB of its own" in repr(view)


# --- wrappers -----------------------------------------------------------------------------------------


def nnsight_logits(wrapped: NNsight) -> torch.Tensor:
    with wrapped.trace(IDS):
        logits = wrapped.lm_head.output.save()
    return logits


@pytest.mark.parametrize("make", [gpt2, llama])
def test_an_attached_nnsight_wrapper_follows_edits_and_undo(make: Callable[[], nn.Module]) -> None:
    view = WeightView(make())
    clone = structural_clone(view.model)
    wrapped = NNsight(clone)
    view.attach(clone)
    plain = nnsight_logits(wrapped)
    for seed in (1, 2):  # a rebinding, then a change in place
        view.write_all({name: noise(view.base(name), seed) for name in view.names()})
        assert torch.equal(nnsight_logits(wrapped), view.model(IDS).logits)
        assert not torch.equal(nnsight_logits(wrapped), plain)
    view.write_all(dict.fromkeys(view.edited))
    assert torch.equal(nnsight_logits(wrapped), plain)
    assert {id(p) for p in clone.parameters()} == {id(p) for p in view.model.parameters()}


@pytest.mark.parametrize("make", [gpt2, llama])
def test_an_attached_bridge_follows_every_parameter(make: Callable[[], nn.Module]) -> None:
    view = WeightView(make())
    clone = structural_clone(view.model)
    bridge = build_bridge_from_module(clone, type(clone).__name__, hf_config=clone.config)
    view.attach(bridge)
    view.model.config._attn_implementation = "eager"  # as the bridge's
    plain = bridge(IDS)
    every = view.names()
    attention = [n for n in every if "attn" in n and "layers.1" not in n]
    for names in (every, attention, every[:1]):
        for seed in (1, 2):  # a rebinding, then a change in place
            view.write_all({name: noise(view.base(name), seed) for name in names})
            torch.testing.assert_close(bridge(IDS), view.model(IDS).logits, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(bridge(IDS), plain, atol=1e-2)
        view.write_all(dict.fromkeys(names))
        assert torch.equal(bridge(IDS), plain)


def test_attach_catches_up_and_refuses_strangers_and_lets_go() -> None:
    view = WeightView(gpt2())
    early = structural_clone(view.model)
    view.write(DOWN, noise(view.base(DOWN)))
    view.attach(early)
    late = structural_clone(view.model)
    view.attach(late)
    for tree in (early, late):
        assert torch.equal(tree(IDS).logits, view.model(IDS).logits)
    view.write(DOWN, None)
    for tree in (early, late):
        assert {id(p) for p in tree.parameters()} == {id(p) for p in view.model.parameters()}
    with pytest.raises(EditlabError, match="shares no parameter"):
        view.attach(gpt2())
    del early, late, tree
    gc.collect()
    assert len(view._roots) == 0


def test_two_threads_edit_two_views_of_one_base() -> None:
    base = gpt2()
    before = state_of(base)
    views = [WeightView(base), WeightView(base)]
    expected = []
    for seed, view in enumerate(views):
        view.write(DOWN, noise(view.base(DOWN), seed + 1))
        expected.append(view.model(IDS).logits)
        view.write(DOWN, None)
    plain = base(IDS).logits
    wrong: list[str] = []

    def work(seed: int) -> None:
        view = views[seed]
        for _ in range(25):
            view.write(DOWN, noise(view.base(DOWN), seed + 1))
            if not torch.equal(view.model(IDS).logits, expected[seed]):
                wrong.append("edited")
            if not torch.equal(base(IDS).logits, plain):
                wrong.append("base")
            view.write(DOWN, None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert_untouched(base, before)
