"""The LM: text in, sites out, cones that know when they are stale, forks, files, and the same weights elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from tiny_lm import BOS, SINK, make_lm, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from editlab.errors import (
    AdapterError,
    ConfigError,
    EditlabError,
    ModelError,
    PackError,
    RequestError,
    StaleState,
    UnknownName,
)
from editlab.hooks.batch import token_at
from editlab.hooks.detect import detect
from editlab.lm import LM
from editlab.state.edit import Delta, Edit

TEXTS = ["the thing is an island", "an inn", "is the café the Ünïcode in it?"]


def edit_of(lm: LM, name: str, seed: int = 1, size: float = 0.5) -> Edit:
    """A random rank-one change of one parameter."""
    rows, cols = dict(lm.model.named_parameters(remove_duplicate=False))[name].shape
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, 1, generator=generator), torch.randn(1, cols, generator=generator)
    return Edit("by-hand", {}, [], {name: Delta(left=size * left, right=right / cols**0.5)})


def down(lm: LM, layer: int) -> str:
    return lm.adapter.down(lm.model, layer).name


def weights_of(model: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    return {n: (id(p), p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}


def assert_unchanged(model: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, (identity, pointer, value) in before.items():
        assert (id(after[name]), after[name].data_ptr()) == (identity, pointer)
        assert torch.equal(after[name], value)


# --- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_tiny_tokenizer_round_trips_every_text(add_bos: bool) -> None:
    tokenizer = make_tokenizer(add_bos)
    for text in [*TEXTS, "".join(map(chr, range(1, 0x250))), "\n\t 🙂"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(tokenizer("the")["input_ids"]) == 1 + add_bos


@pytest.mark.parametrize("pad", ["left", "right"])
def test_encode_pads_counts_positions_and_knows_where_each_token_lies(pad: Any) -> None:
    lm = make_lm("gpt2")
    batch = lm.encode(TEXTS, pad=pad)
    lengths = [len(lm.tokenizer(t)["input_ids"]) for t in TEXTS]
    assert batch.lengths.tolist() == lengths
    assert batch.width == max(lengths)
    for i, text in enumerate(TEXTS):
        real = batch.mask[i].bool()
        start = batch.width - lengths[i] if pad == "left" else 0
        assert real.nonzero().flatten().tolist() == list(range(start, start + lengths[i]))
        assert lm.tokenizer.decode(batch.ids[i][real]) == text
        assert batch.position_ids[i][real].tolist() == list(range(lengths[i]))
        assert len(batch.spans[i]) == lengths[i]
        whole = "".join(text[a:b] for a, b in batch.spans[i] if text[a:b].isascii())
        assert whole == "".join(c for c in text if c.isascii())


def test_spans_find_the_token_of_a_character() -> None:
    lm = make_lm("gpt2")
    text = TEXTS[2]
    ids, spans = lm.tokens(text)
    at = token_at(spans, text.index("é"))
    assert lm.tokenizer.decode(ids[: at + 1]) == text[: text.index("é") + 1]
    assert lm.tokenizer.decode(ids[:at]) != text[: text.index("é")]  # é is two tokens; the second one counts
    with pytest.raises(RequestError, match="No token covers"):
        token_at(spans, len(text))


def test_the_sink_goes_in_front_and_has_no_span() -> None:
    lm = make_lm("gpt2")
    assert not lm.adds_bos
    assert lm.tokenizer.convert_ids_to_tokens(lm.sink) == SINK
    plain, sunk = lm.encode(TEXTS), lm.encode(TEXTS, sink=True)
    assert (sunk.lengths - plain.lengths).tolist() == [1, 1, 1]
    assert sunk.ids[torch.arange(3), sunk.first].tolist() == [lm.sink] * 3
    assert [spans[0] for spans in sunk.spans] == [(0, 0)] * 3
    assert [spans[1:] for spans in sunk.spans] == list(plain.spans)


def test_a_tokenizer_that_adds_bos_gets_it_once() -> None:
    lm = make_lm("llama", add_bos=True)
    assert lm.adds_bos
    assert lm.tokenizer.convert_ids_to_tokens(lm.sink) == BOS
    for sink in (False, True):
        batch = lm.encode(TEXTS, sink=sink)
        for i, text in enumerate(TEXTS):
            assert batch.ids[i][batch.mask[i].bool()].tolist() == lm.tokenizer(text)["input_ids"]
    assert lm.tokens(TEXTS[0], special=False)[0] == lm.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("texts", "why"), [("", "empty text"), ([], "no text"), (["the", ""], "empty text")])
def test_an_empty_text_is_refused(texts: Any, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        make_lm("gpt2").encode(texts)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="no character offsets"):
        LM(make_model("llama"), Slow())


def test_an_unsupported_model_is_refused_at_once_unless_an_adapter_is_handed_in() -> None:
    settings = {"vocab_size": len(make_tokenizer()), "do_layer_norm_before": False}
    with pytest.raises(AdapterError):
        LM(make_model("opt", **settings), make_tokenizer())
    adapter = detect(make_model("opt"))
    lm = LM(make_model("opt", **settings), make_tokenizer(), adapter=adapter)
    assert lm.adapter is adapter
    assert lm.forward(lm.encode("the")).shape[:2] == (1, 1)


# --- reading ------------------------------------------------------------------------------------------


def test_forward_and_generate_are_hugging_face_s(family: str) -> None:
    lm = make_lm(family)
    batch = lm.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            alone = lm.model(ids).logits[0, -1]
        together = lm.forward(batch, read=batch.last)[i]
        assert (together - alone).abs().max() <= 1e-5 * alone.abs().max()
        new = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert lm.generate(text, 5) == [lm.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)]


def test_generate_stops_a_row_at_the_end_token() -> None:
    lm = make_lm("llama")
    batch = lm.encode("the thing")
    first, second, *_ = lm.generate_ids(batch, 4)[0]
    assert len(lm.generate_ids(batch, 4)[0]) == 4
    lm.model.generation_config.eos_token_id = [second, 0]
    assert lm.generate_ids(batch, 4) == [[first]]


def test_captures_are_indexed_by_site_and_layer() -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS)
    cache = lm.capture(batch, ["resid_pre", ("z", 1), "embed"])
    assert set(cache) == {("resid_pre", 0), ("resid_pre", 1), ("resid_pre", 2), ("z", 1), "embed"}
    assert cache["resid_pre", 2].shape == (3, batch.width, 32)
    assert cache["z", 1].shape == (3, batch.width, 4, 8)
    assert torch.equal(cache["embed"], cache["resid_pre", 0])
    with pytest.raises(KeyError, match=r"'z' of layer 2 was not captured; captured: .*z 1"):
        cache["z", 2]
    with pytest.raises(UnknownName, match="mlp_key"):
        lm.capture(batch, ["mlp_keys"])
    assert torch.equal(lm.capture(batch, ["logits"])["logits"], lm.forward(batch))


# --- cones and edits ----------------------------------------------------------------------------------


def test_run_from_a_prefix_equals_the_forward(family: str) -> None:
    lm = make_lm(family)
    batch = lm.encode(TEXTS, pad="right")
    full = lm.forward(batch)
    for cut in (0, 2):
        got = lm.run_from(lm.prefix(batch, 1, cut)).logits
        assert (got - full[:, cut:])[batch.mask[:, cut:].bool()].abs().max() <= 1e-5 * full.abs().max()


@pytest.mark.parametrize("edited", [1, 2])
def test_a_prefix_keeps_working_after_an_edit_at_or_above_its_layer(edited: int) -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS)
    cone = lm.prefix(batch, 1)
    before = lm.run_from(cone).logits
    entry = lm.ledger.apply(edit_of(lm, down(lm, edited)))
    assert torch.equal(lm.run_from(cone).logits, lm.forward(batch))
    assert not torch.equal(lm.forward(batch), before)
    lm.undo(entry.id)
    assert torch.equal(lm.run_from(cone).logits, before)


def test_a_prefix_is_stale_after_an_edit_below_it_and_after_its_undo() -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS)
    for name in (down(lm, 0), "model.embed_tokens.weight"):
        cone = lm.prefix(batch, 1)
        entry = lm.ledger.apply(edit_of(lm, name))
        with pytest.raises(StaleState, match="layer 1"):
            lm.run_from(cone)
        edited = lm.prefix(batch, 1)
        assert torch.equal(lm.run_from(edited).logits, lm.forward(batch))
        lm.undo(entry.id)
        with pytest.raises(StaleState):
            lm.run_from(edited)


def test_a_prefix_with_earlier_columns_is_stale_after_any_edit() -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS, pad="right")
    cone = lm.prefix(batch, 1, 2)
    lm.ledger.apply(edit_of(lm, down(lm, 1)))
    with pytest.raises(StaleState, match="Make the cone again"):
        lm.run_from(cone)
    assert torch.isfinite(lm.run_from(lm.prefix(batch, 1, 2)).logits).all()


def test_an_edit_of_the_head_makes_a_prefix_stale_only_where_it_is_the_embedding_too() -> None:
    for tied in (False, True):
        lm = make_lm("llama", tie_word_embeddings=tied)
        cone = lm.prefix(lm.encode(TEXTS), 1)
        lm.ledger.apply(edit_of(lm, "lm_head.weight"))
        if tied:
            with pytest.raises(StaleState):
                lm.run_from(cone)
        else:
            assert torch.equal(lm.run_from(cone).logits, lm.forward(cone.batch))


def test_a_prefix_of_one_fork_is_not_taken_for_another_s() -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS)
    one, two = lm.fork(), lm.fork()
    one.ledger.apply(edit_of(one, down(one, 0), seed=1))
    two.ledger.apply(edit_of(two, down(two, 0), seed=2))
    with pytest.raises(StaleState):
        two.run_from(one.prefix(batch, 1))


@pytest.mark.parametrize("family_", ["llama", "gpt2", "falcon"])
def test_edits_and_undo_never_touch_the_model_that_was_handed_in(family_: str) -> None:
    tokenizer = make_tokenizer()
    model = make_model(family_, vocab_size=len(tokenizer), tie_word_embeddings=True)
    before, logits = weights_of(model), model(torch.tensor([[1, 5, 9]])).logits
    lm = LM(model, tokenizer)
    batch = lm.encode(TEXTS)
    clean = lm.forward(batch)
    entries = [lm.ledger.apply(edit_of(lm, name)) for name in (down(lm, 0), down(lm, 2), "lm_head.weight")]
    assert not torch.equal(lm.forward(batch), clean)
    assert lm.state_hash != lm.base_hash
    assert_unchanged(model, before)
    lm.generate(TEXTS[0], 3)
    for entry in entries:
        lm.undo(entry.id)
    assert torch.equal(lm.forward(batch), clean)
    assert lm.state_hash == lm.base_hash
    lm.redo(entries[0].id)
    lm.undo()
    assert_unchanged(model, before)
    assert torch.equal(model(torch.tensor([[1, 5, 9]])).logits, logits)
    assert {id(p) for p in lm.model.parameters()} == {identity for identity, *_ in before.values()}


def test_undo_without_an_edit_or_with_a_wrong_name_is_refused() -> None:
    lm = make_lm("llama")
    with pytest.raises(ConfigError, match="no edit to undo"):
        lm.undo()
    entry = lm.ledger.apply(edit_of(lm, down(lm, 0)))
    with pytest.raises(UnknownName, match="e9"):
        lm.undo("e9")
    lm.undo(entry.id)
    with pytest.raises(UnknownName):
        lm.undo(entry.id)
    with pytest.raises(ConfigError, match="Make one first"):
        lm.undo()


def test_forks_are_independent() -> None:
    lm = make_lm("llama")
    batch = lm.encode(TEXTS)
    base = lm.forward(batch)
    entry = lm.ledger.apply(edit_of(lm, down(lm, 1)))
    edited = lm.forward(batch)
    twin = lm.fork()
    assert [e.id for e in twin.ledger] == [entry.id]
    assert twin.state_hash == lm.state_hash
    assert torch.equal(twin.forward(batch), edited)
    twin.ledger.apply(edit_of(twin, down(twin, 2)))
    assert torch.equal(lm.forward(batch), edited)
    lm.undo()
    assert torch.equal(lm.forward(batch), base)
    assert [e.is_active for e in twin.ledger] == [True, True]
    twin.undo(entry.id)
    assert twin.state_hash not in (lm.state_hash, lm.base_hash)


def test_pristine_is_the_base_and_costs_nothing_when_nothing_is_edited() -> None:
    lm = make_lm("llama")
    assert lm.pristine() is lm
    base = lm.forward(lm.encode(TEXTS))
    lm.ledger.apply(edit_of(lm, down(lm, 1)))
    state = lm.state_hash
    clean = lm.pristine()
    assert clean is not lm
    assert torch.equal(clean.forward(lm.encode(TEXTS)), base)
    assert (clean.state_hash, len(clean.ledger)) == (lm.base_hash, 0)
    clean.ledger.apply(edit_of(clean, down(clean, 0)))
    assert lm.state_hash == state


def test_the_hash_up_to_a_layer_depends_on_what_its_states_depend_on() -> None:
    lm, other = make_lm("llama"), make_lm("llama")
    with torch.no_grad():
        base = LM(other.model, other.tokenizer).model
        base.model.layers[1].mlp.down_proj.weight.add_(1.0)
    other = LM(base, other.tokenizer)
    assert lm.base_hash_up_to(0) == other.base_hash_up_to(0)
    assert lm.base_hash_up_to(1) != other.base_hash_up_to(1)
    assert len({lm.base_hash_up_to(layer) for layer in range(4)}) == 4


def test_the_tokenizer_hash_tells_tokenizers_apart() -> None:
    hashes = [make_lm("llama", add_bos=bos).tokenizer_hash for bos in (False, False, True)]
    assert hashes[0] == hashes[1] != hashes[2]


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family_", ["llama", "gpt2", "falcon"])
def test_a_saved_folder_is_a_plain_model_with_the_edits_in_it(tmp_path: Path, family_: str, dtype: torch.dtype) -> None:
    tokenizer = make_tokenizer()
    make_model(family_, vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    # Loaded, because `from_pretrained` keeps rotary tables in float32 where `.to(bfloat16)` does not.
    lm = LM(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).eval(), tokenizer)
    lm.ledger.apply(edit_of(lm, down(lm, 1)))
    folder = lm.save_pretrained(tmp_path / "edited")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ours = dict(lm.model.named_parameters())
    assert {n for n, _ in loaded.named_parameters()} == set(ours)
    assert all(torch.equal(p, ours[n]) for n, p in loaded.named_parameters())
    again = LM(loaded, AutoTokenizer.from_pretrained(folder))
    assert again.state_hash == lm.state_hash
    assert torch.equal(again.forward(again.encode(TEXTS)), lm.forward(lm.encode(TEXTS)))
    with pytest.raises(ConfigError, match="not empty"):
        lm.save_pretrained(folder)


def test_saved_edits_load_into_the_same_base_and_no_other(tmp_path: Path) -> None:
    lm = make_lm("llama")
    entries = [lm.ledger.apply(edit_of(lm, down(lm, layer), seed=layer)) for layer in range(3)]
    lm.undo(entries[1].id)
    folder = lm.save_edits(tmp_path / "pack")
    same, other = make_lm("llama"), make_lm("llama", seed=1)
    same.load_edits(folder)
    assert same.state_hash == lm.state_hash
    assert torch.equal(same.forward(same.encode(TEXTS)), lm.forward(lm.encode(TEXTS)))
    same.undo(entries[0].id)
    same.undo(entries[2].id)
    assert same.state_hash == same.base_hash
    with pytest.raises(PackError):
        other.load_edits(folder)
    assert other.state_hash == other.base_hash


# --- other libraries ----------------------------------------------------------------------------------


def nnsight_logits(wrapped: Any, ids: Tensor) -> Tensor:
    with torch.no_grad(), wrapped.trace(ids):
        logits = wrapped.lm_head.output.save()
    return logits


def bridge_logits(bridge: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return bridge(ids)


WRAPPERS: dict[str, tuple[Callable[[LM], Any], Callable[[Any, Tensor], Tensor], float]] = {
    "nnsight": (LM.to_nnsight, nnsight_logits, 0.0),
    "bridge": (LM.to_bridge, bridge_logits, 1e-4),  # its attention is eager, ours fused
}


@pytest.mark.parametrize("library", WRAPPERS)
@pytest.mark.parametrize("family_", ["gpt2", "llama"])
def test_a_wrapper_gives_our_logits_and_follows_edits_and_undo(family_: str, library: str) -> None:
    wrap, logits_of, tolerance = WRAPPERS[library]
    lm = make_lm(family_)
    ids = lm.encode(TEXTS[0]).ids
    early = lm.ledger.apply(edit_of(lm, down(lm, 0)))
    wrapped = wrap(lm)

    def difference() -> float:
        return float((logits_of(wrapped, ids) - lm.forward(lm.encode(TEXTS[0]))).abs().max())

    assert difference() <= tolerance
    before = logits_of(wrapped, ids)
    entry = lm.ledger.apply(edit_of(lm, down(lm, 1)))
    assert difference() <= tolerance
    assert (logits_of(wrapped, ids) - before).abs().max() > 1e-2
    lm.ledger.apply(edit_of(lm, down(lm, 1), seed=3))  # this one changes the view's own copy in place
    assert difference() <= tolerance
    assert lm.take_back(wrapped) is lm
    lm.undo()
    lm.undo(entry.id)
    assert torch.equal(logits_of(wrapped, ids), before)
    lm.undo(early.id)
    assert difference() <= tolerance
    assert lm.take_back(wrapped) is lm


@pytest.mark.parametrize("library", WRAPPERS)
@pytest.mark.parametrize("family_", ["gpt2", "llama"])
def test_wrapping_does_not_touch_the_lm(tmp_path: Path, family_: str, library: str) -> None:
    wrap, logits_of, _ = WRAPPERS[library]
    lm = make_lm(family_)
    batch = lm.encode(TEXTS)
    model, logits, weights = lm.model, lm.forward(batch), weights_of(lm.model)
    modules = {name: type(m) for name, m in model.named_modules()}
    keys, attention, padding = list(model.state_dict()), model.config._attn_implementation, lm.tokenizer.padding_side
    wrapped = wrap(lm)
    logits_of(wrapped, batch.ids)
    assert lm.model is model
    assert {name: type(m) for name, m in model.named_modules()} == modules
    assert not any("forward" in vars(m) for m in model.modules())
    assert list(model.state_dict()) == keys
    assert model.config._attn_implementation == attention
    assert_unchanged(model, weights)
    assert torch.equal(lm.forward(batch), logits)
    assert torch.equal(lm.encode(TEXTS).ids, batch.ids)
    assert lm.tokenizer.padding_side == padding
    lm.save_pretrained(tmp_path / "saved")
    assert lm.fork().state_hash == lm.base_hash


@pytest.mark.parametrize("library", WRAPPERS)
def test_a_wrapper_with_other_weights_is_not_taken_back(library: str) -> None:
    wrap, *_ = WRAPPERS[library]
    lm, stranger = make_lm("llama"), make_lm("llama")
    with pytest.raises(ModelError, match="does not share"):
        lm.take_back(wrap(stranger))
    with pytest.raises(ModelError, match="does not share"):
        lm.fork().take_back(stranger.model)


def test_an_open_session_blocks_wrapping_and_says_so() -> None:
    lm = make_lm("llama")
    with lm.session() as s, pytest.raises(EditlabError, match="open session"):
        s.capture("mlp_out", 1)
        lm.to_nnsight()


def test_what_is_kept_of_a_state_is_made_again_when_the_state_has_changed() -> None:
    lm = make_lm("llama")
    made: list[str] = []

    def make() -> int:
        made.append(lm.state_hash)
        return len(made)

    assert [lm.at_state("count", make), lm.at_state("count", make), lm.at_state("other", make)] == [1, 1, 2]
    lm.ledger.apply(edit_of(lm, down(lm, 1)))
    assert [lm.at_state("count", make), lm.at_state("count", make)] == [3, 3]
    lm.undo()
    assert lm.at_state("count", make) == 4
    # A hook changes what the model gives while its hash stays as it was.
    hook = lm.model.register_forward_hook(lambda module, given, out: out)
    assert [lm.at_state("count", make), lm.at_state("count", make)] == [5, 6]
    hook.remove()
    assert lm.at_state("count", make) == 4
