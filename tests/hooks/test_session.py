"""Sessions: what they promise about order, positions, gradients and threads, and that they leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import make_model
from tiny_lm import make_lm
from torch import Tensor, nn

from editlab.errors import ConfigError, RequestError, SiteNotReached, SiteUnavailable, StaleState, UnknownName
from editlab.hooks.adapter import ModelAdapter
from editlab.hooks.attention import _OPEN
from editlab.hooks.batch import Batch, pad_rows
from editlab.hooks.cone import Cone, restorer
from editlab.hooks.detect import detect
from editlab.hooks.points import frame_of_call
from editlab.hooks.session import Session

ROWS = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17]]

Found = tuple[nn.Module, ModelAdapter]


def find(family: str, **changes: Any) -> Found:
    model = make_model(family, **changes)
    return model, detect(model)


@pytest.fixture
def llama() -> Found:
    return find("llama")


def batch_of(pad: Any = "left") -> Batch:
    return pad_rows(ROWS, pivots=pad)


def leftovers(model: nn.Module) -> list[str]:
    """Hooks and replaced forwards of editlab; those that transformers installs for good are not ours."""
    found = []
    for name, module in model.named_modules():
        for slot in ("_forward_hooks", "_forward_pre_hooks"):
            for hook in getattr(module, slot).values():
                if str(getattr(hook, "__module__", None) or type(hook).__module__).startswith("editlab"):
                    found.append(f"{name}: {hook}")
        if "forward" in vars(module):
            found.append(f"{name}: forward")
    return found


def plain_logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids).logits


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of `work` in another thread, waited for."""
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(work()))
    thread.start()
    thread.join()
    return box[0]


# --- life cycle ---------------------------------------------------------------------------------------


def use_everything(s: Session, batch: Batch) -> None:
    for site in ("resid_pre", "resid_mid", "z", "mlp_key", "pattern", "embed", "final", "logits"):
        s.capture(site)
    s.patch("mlp_out", 1, lambda x: 2 * x, at=-1)
    s.ablate("z", 1, heads=[0], with_="mean")
    s.run(batch)
    s.generate(batch, 2)


def run_early_stop(s: Session, batch: Batch) -> None:
    s.capture("resid_post", 1)
    s.run(batch, read=None)


def run_cone(s: Session, batch: Batch) -> None:
    for cut in (0, 4):
        s.run(s.cone(batch, 2, cut), read=batch.last)


def raise_wrong_site(s: Session, batch: Batch) -> None:
    s.capture("resid_post", 1)
    s.capture("residual", 1)


def raise_wrong_layer(s: Session, batch: Batch) -> None:
    s.capture("resid_post", [0, 1, 3])


def raise_in_patch(s: Session, batch: Batch) -> None:
    s.patch("mlp_out", 1, lambda x: 1 / 0)
    s.run(batch)


def raise_in_patch_on_cone(s: Session, batch: Batch) -> None:
    cone = s.cone(batch, 1, 4)
    s.patch("mlp_out", 1, lambda x: 1 / 0)
    s.run(cone, read=batch.last)


def interrupt_in_tap(s: Session, batch: Batch) -> None:
    def stop(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    s.patch("pattern", 1, stop)
    s.run(batch, read=None)


def reach_nothing(s: Session, batch: Batch) -> None:
    s.capture("mlp_out", 0)
    s.run(s.cone(batch, 1))


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (use_everything, None),
        (run_early_stop, None),
        (run_cone, None),
        (raise_wrong_site, UnknownName),
        (raise_wrong_layer, ConfigError),
        (raise_in_patch, ZeroDivisionError),
        (raise_in_patch_on_cone, ZeroDivisionError),
        (interrupt_in_tap, KeyboardInterrupt),
        (reach_nothing, SiteNotReached),
    ],
    ids=lambda x: getattr(x, "__name__", "fine"),
)
def test_nothing_is_left_behind(llama: Found, use: Callable[..., None], error: type[BaseException] | None) -> None:
    model, adapter = llama
    batch = batch_of()
    model(batch.ids, output_hidden_states=True)  # from here on transformers has hooks of its own
    before, attention = plain_logits(model, batch), model.config._attn_implementation
    if error is None:
        with Session(model, adapter) as s:
            use(s, batch)
    else:
        with pytest.raises(error), Session(model, adapter) as s:
            use(s, batch)
    assert leftovers(model) == []
    assert model.config._attn_implementation == attention
    assert torch.equal(plain_logits(model, batch), before)
    with Session(model, adapter) as s, torch.no_grad():
        assert torch.equal(s.run(batch).logits, before)


def test_a_wrong_layer_in_a_list_registers_nothing(llama: Found) -> None:
    with Session(*llama) as s:
        inside = leftovers(s.model)
        with pytest.raises(ConfigError, match="0 to 2"):
            s.capture("mlp_out", [0, 1, 3])
        assert leftovers(s.model) == inside


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_session_that_is_not_open_takes_no_wishes(llama: Found, moment: str) -> None:
    s = Session(*llama)
    if moment == "after":
        with s:
            pass
    for site in ("z", "pattern"):
        with pytest.raises(ConfigError, match="not open"):
            s.capture(site, 1)
    assert leftovers(s.model) == []


def test_a_session_can_be_entered_again_and_starts_empty(llama: Found) -> None:
    s = Session(*llama)
    with s:
        s.patch("mlp_out", 1, 0.0)
    with s:
        assert torch.equal(s.run(batch_of()).logits, plain_logits(s.model, batch_of()))


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "pattern"])
def test_nested_sessions_both_act_and_the_inner_exit_removes_only_its_own(llama: Found, site: str) -> None:
    model, adapter = llama
    batch = batch_of()
    with torch.no_grad(), Session(model, adapter) as alone:
        alone.patch(site, 0, lambda x: 2 * x)
        outer_only = alone.run(batch).logits
        alone.patch(site, 1, lambda x: 3 * x)
        both = alone.run(batch).logits
    with torch.no_grad(), Session(model, adapter) as outer:
        outer.patch(site, 0, lambda x: 2 * x)
        with Session(model, adapter) as inner:
            inner.patch(site, 1, lambda x: 3 * x)
            assert torch.equal(inner.run(batch).logits, both)
            assert torch.equal(outer.run(batch).logits, both)
        assert torch.equal(outer.run(batch).logits, outer_only)
    assert leftovers(model) == []


def test_a_tap_opened_late_in_the_outer_session_survives_the_inner_one(llama: Found) -> None:
    model, adapter = llama
    batch = batch_of()
    with torch.no_grad(), Session(model, adapter) as outer:
        with Session(model, adapter) as inner:
            inner.capture("pattern", 1)
            outer.patch("pattern", 1, 0.0, heads=[1])
            inner.run(batch)
        outer.capture("z", 1)
        assert outer.run(batch, read=None)["z", 1][:, :, 1].abs().max() == 0
    assert model.config._attn_implementation == "sdpa"


def test_an_outer_session_sees_the_inner_one_s_cone_as_it_is(llama: Found) -> None:
    model, adapter = llama
    batch = pad_rows(ROWS, pivots=[2, 1, 3])
    with torch.no_grad(), Session(model, adapter) as s:
        cone = s.cone(batch, 1, 3)
        s.patch("mlp_out", 2, 0.0, at=-1)
        expected = s.run(cone).logits
    with torch.no_grad(), Session(model, adapter) as outer, Session(model, adapter) as inner:
        outer.patch("mlp_out", 2, 0.0, at=-1)
        assert torch.equal(inner.run(cone).logits, expected)


# --- hooks that never fire ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "layer"),
    [("mlp_out", 0), ("resid_pre", 1), ("resid_post", 1), ("resid_mid", 0), ("pattern", 1), ("embed", None)],
)
@pytest.mark.parametrize("kind", ["capture", "patch"])
def test_what_lies_below_a_cone_is_not_reached(llama: Found, kind: str, site: str, layer: int | None) -> None:
    with Session(*llama) as s, torch.no_grad():
        cone = s.cone(batch_of(), 2)
        _ = s.patch(site, layer, 0.0) if kind == "patch" else s.capture(site, layer)
        error = StaleState if kind == "patch" else SiteNotReached
        with pytest.raises(error, match=f"{kind} of '{site}'" + (f" in layer {layer}" if layer else "")):
            s.run(cone)


def test_a_patch_for_decoding_is_not_reached_in_a_run(llama: Found) -> None:
    with Session(*llama) as s:
        s.patch("mlp_out", 1, 0.0, during="decode")
        with pytest.raises(SiteNotReached, match="'mlp_out' in layer 1"):
            s.run(batch_of())


# --- order --------------------------------------------------------------------------------------------


def test_a_capture_sees_patches_unless_it_asks_for_before(llama: Found) -> None:
    with Session(*llama) as s, torch.no_grad():
        s.capture("mlp_out", 1)
        clean = s.run(batch_of())["mlp_out", 1]
        s.patch("mlp_out", 1, lambda x: 2 * x)
        assert torch.equal(s.run(batch_of())["mlp_out", 1], 2 * clean)
    with Session(*llama) as s, torch.no_grad():
        s.capture("mlp_out", 1, when="before")
        s.patch("mlp_out", 1, lambda x: 2 * x)
        assert torch.equal(s.run(batch_of())["mlp_out", 1], clean)


def test_patches_at_one_site_act_in_the_order_of_their_calls_and_can_be_taken_back(llama: Found) -> None:
    with Session(*llama) as s, torch.no_grad():
        clean = s.run(batch_of()).logits
        s.capture("mlp_out", 1)
        wishes = [s.patch("mlp_out", 1, 1.0), s.patch("mlp_out", 1, lambda x: x + 1), s.patch("mlp_out", 1, torch.neg)]
        assert bool((s.run(batch_of())["mlp_out", 1] == -2).all())
        s.remove(wishes.pop())
        assert bool((s.run(batch_of())["mlp_out", 1] == 2).all())
        s.remove(wishes)
        assert torch.equal(s.run(batch_of()).logits, clean)


def test_logits_can_be_captured_and_patched_whatever_is_read(llama: Found) -> None:
    batch = batch_of()
    with Session(*llama) as s, torch.no_grad():
        clean = s.run(batch).logits
        s.capture("logits")
        for read in ("all", None, batch.last):
            assert torch.equal(s.run(batch, read=read)["logits"], clean)
        s.patch("logits", None, 7.0, at=-1)
        assert bool((s.run(batch, read=batch.last).logits == 7).all())


def test_falcon_s_addition_in_place_reaches_neither_captures_nor_patches() -> None:
    model, adapter = find("falcon")
    batch = batch_of()
    kept: list[Tensor] = []
    handle = model.get_submodule(adapter.layers[1].mlp_out).register_forward_hook(
        lambda m, args, output: kept.append(output.clone())
    )
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("mlp_out", 1)
        safe = s.run(batch)["mlp_out", 1]
    handle.remove()
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("mlp_out", 1, copy=False)
        overwritten = s.run(batch)["mlp_out", 1]
    assert torch.equal(safe, kept[0])
    assert not torch.allclose(overwritten, kept[0])
    mine = safe.clone()
    with Session(model, adapter) as s, torch.no_grad():
        clean = s.run(batch).logits
        wish = s.patch("mlp_out", 1, mine)
        assert torch.equal(s.run(batch).logits, clean)
        s.remove(wish)
        s.patch("mlp_out", 1, 0.0)
        s.run(batch)
    assert torch.equal(mine, safe)


# --- positions ----------------------------------------------------------------------------------------

MASK = torch.zeros(3, 7, dtype=torch.bool)
MASK[0, 0] = MASK[0, 6] = MASK[2, 3] = True


@pytest.mark.parametrize(
    ("at", "columns"),
    [
        (0, [0, 4, 2]),
        (2, [2, 6, 4]),
        (-1, [6, 6, 6]),
        (-3, [4, 4, 4]),
        (slice(1, 3), [[1, 2], [5, 6], [3, 4]]),
        (slice(-2, None), [[5, 6], [5, 6], [5, 6]]),
        (torch.tensor([0, 5, 6]), [0, 5, 6]),
        ([0, 5, 6], [0, 5, 6]),
        (torch.tensor([[0, 1], [5, 4], [6, 6]]), [[0, 1], [5, 4], [6, 6]]),
        (MASK, None),
    ],
    ids=["int", "inner int", "last", "third last", "slice", "tail", "columns", "list", "many columns", "mask"],
)
def test_at_means_these_columns_for_captures_and_patches(llama: Found, at: Any, columns: Any) -> None:
    batch = batch_of()  # rows of 7, 3 and 5 tokens, padded on the left
    wanted = MASK.clone()
    if columns is not None:
        wanted = torch.zeros_like(MASK)
        for row, cols in enumerate(columns):
            wanted[row, cols] = True
    with Session(*llama) as s, torch.no_grad():
        full = s.capture("mlp_out", 1)
        clean = s.run(batch)["mlp_out", 1]
        s.remove(full)
        part = s.capture("mlp_out", 1, at=at)
        got = s.run(batch)["mlp_out", 1]
        s.remove(part)
        if columns is None:
            assert torch.equal(got, clean[wanted])
        else:
            index = torch.tensor(columns)
            rows = torch.arange(3) if index.dim() == 1 else torch.arange(3)[:, None]
            assert torch.equal(got, clean[rows, index])
        s.capture("mlp_out", 1)
        s.patch("mlp_out", 1, 0.0, at=at)
        patched = s.run(batch)["mlp_out", 1]
    assert torch.equal(patched, clean.masked_fill(wanted[:, :, None], 0.0))


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (3, "outside the shortest text"),
        (-4, "outside the shortest text"),
        (slice(0, 5), "different numbers of tokens"),
        (torch.tensor([0, 1]), "2 positions were given for 3 rows"),
        (torch.tensor(1), "one entry per row"),
        (torch.tensor([0, 1, 7]), "outside what this forward computes"),
        (torch.tensor([0, 1, -1]), "outside what this forward computes"),
        (torch.ones(3, 6, dtype=torch.bool), r"shape \(3, 6\), the batch \(3, 7\)"),
    ],
    ids=["late", "early", "slice", "too few", "scalar", "too large", "negative", "mask"],
)
def test_positions_that_do_not_exist_are_refused_in_words(llama: Found, at: Any, words: str) -> None:
    with Session(*llama) as s:
        s.patch("mlp_out", 1, 0.0, at=at)
        with pytest.raises(ConfigError, match=words):
            s.run(batch_of())


def test_a_position_before_a_cone_s_columns_is_refused(llama: Found) -> None:
    with Session(*llama) as s:
        cone = s.cone(batch_of(), 1, 4)
        s.patch("mlp_out", 1, 0.0, at=torch.tensor([3, 4, 5]))
        with pytest.raises(ConfigError, match="Columns 4 to 6 are inside"):
            s.run(cone)


@pytest.mark.parametrize("pad", ["left", "right", [2, 1, 3]])
def test_reading_chosen_columns_equals_indexing_all_logits(family: str, pad: Any) -> None:
    model, adapter = find(family)
    batch = batch_of(pad)
    rows, pair = torch.arange(3), torch.stack([batch.first, batch.last], -1)
    mask = batch.mask.bool() & (torch.arange(batch.width) % 2 == 0)
    with Session(model, adapter) as s, torch.no_grad():
        full = s.run(batch).logits
        for read, expected in (
            (batch.last, full[rows, batch.last]),
            (pair, full[rows[:, None], pair]),
            (mask, full[mask]),
        ):
            got = s.run(batch, read=read).logits
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= 1e-5 * full.abs().max()  # a smaller matmul rounds differently


def test_a_mask_of_padding_frames_a_forward_and_no_other_mask_does() -> None:
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert torch.equal(frame_of_call((ids,), {"attention_mask": mask}).mask, mask)
    for given in ({}, {"attention_mask": torch.zeros(2, 1, 3, 3)}):
        frame = frame_of_call((), {"input_ids": ids, **given})
        assert torch.equal(frame.mask, torch.ones(2, 3, dtype=torch.long))
        assert (frame.offset, frame.width, frame.is_decode) == (0, 3, False)


def test_a_forward_is_put_back_as_it_was_found() -> None:
    module = nn.Linear(2, 2)
    plain = restorer(module)
    module.forward = first = lambda x: x  # type: ignore[assignment]
    replaced = restorer(module)
    module.forward = lambda x: 2 * x  # type: ignore[assignment]
    replaced()
    assert vars(module)["forward"] is first
    plain()
    assert "forward" not in vars(module)


# --- values, heads, ablation --------------------------------------------------------------------------


def test_a_patch_of_the_wrong_shape_names_both_shapes(llama: Found) -> None:
    with Session(*llama) as s:
        s.patch("mlp_out", 1, torch.zeros(5))
        with pytest.raises(ConfigError, match=r"shape \(5,\), the place has \(3, 7, 32\)"):
            s.run(batch_of())


def test_a_patch_takes_the_site_s_dtype() -> None:
    with Session(*find("llama", dtype=torch.bfloat16)) as s, torch.no_grad():
        s.patch("mlp_out", 1, torch.full((32,), 0.5, dtype=torch.float64))
        s.capture("mlp_out", 1)
        got = s.run(batch_of())["mlp_out", 1]
    assert got.dtype == torch.bfloat16
    assert bool((got == 0.5).all())


@pytest.mark.parametrize(("site", "heads"), [("z", [1, 3]), ("q", [0, 3]), ("k", [1]), ("v", [0, 1])])
@pytest.mark.parametrize("at", [None, -1, MASK], ids=["everywhere", "last", "mask"])
def test_only_the_named_heads_change(llama: Found, site: str, heads: list[int], at: Any) -> None:
    with Session(*llama) as s, torch.no_grad():
        s.capture(site, 0)
        clean = s.run(batch_of())[site, 0]
        s.patch(site, 0, 9.0, heads=heads, at=at)
        got = s.run(batch_of())[site, 0]
    expected = clean.clone()
    where = MASK | True if at is None else MASK
    if isinstance(at, int):
        where = torch.zeros_like(MASK)
        where[:, -1] = True
    for head in heads:
        expected[:, :, head][where] = 9.0
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("site", "head", "last"), [("z", 4, 3), ("q", -1, 3), ("k", 2, 1), ("v", 2, 1), ("k_rot", 3, 1)]
)
def test_a_head_that_does_not_exist_is_refused(llama: Found, site: str, head: int, last: int) -> None:
    with Session(*llama) as s, pytest.raises(ConfigError, match=f"from 0 to {last}"):
        s.patch(site, 1, 0.0, heads=[head])


def test_wishes_that_make_no_sense_are_refused_before_the_run(llama: Found) -> None:
    with Session(*llama) as s:
        inside = leftovers(s.model)
        for words, call in {
            "has no heads": lambda: s.patch("mlp_out", 1, 0.0, heads=[0]),
            "keeps the whole tensor": lambda: s.capture("mlp_out", 1, grad=True, at=-1),
            "exists in every layer": lambda: s.patch("mlp_out", None, 0.0),
            "exists once": lambda: s.patch("embed", 1, 0.0),
            "takes no `at`": lambda: s.patch("pattern", 1, 0.0, at=-1),
            "no mean over tokens": lambda: s.ablate("pattern", 1, with_="mean"),
            "with_='median'": lambda: s.ablate("z", 1, with_="median"),
            "Did you mean 'resid_pre'": lambda: s.capture("resid_pr", 1),
        }.items():
            with pytest.raises(ConfigError, match=words):
                call()
        assert leftovers(s.model) == inside
    with Session(*find("phi")) as s, pytest.raises(SiteUnavailable, match="in parallel"):
        s.capture("resid_mid", 1)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_a_wish_that_is_refused_opens_no_attention_tap(family: str) -> None:
    model, adapter = find(family)
    with Session(model, adapter) as s:
        inside, before = leftovers(model), model.config._attn_implementation
        for call in (
            lambda: s.capture("pattern", [0, 99]),
            lambda: s.capture("pattern", 0, at=-1),
            lambda: s.patch("pattern", 0, 0.0, at=-1),
        ):
            with pytest.raises(ConfigError):
                call()
            assert (leftovers(model), model.config._attn_implementation, _OPEN.get()) == (inside, before, ())


@pytest.mark.parametrize(
    ("family", "fails"), [("llama", "set_attn_implementation"), ("falcon", "register_forward_pre_hook")]
)
def test_a_tap_that_cannot_be_opened_leaves_the_model_as_it_was(
    family: str, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = find(family)
    before, real = model.config._attn_implementation, getattr(model, fails)
    with Session(model, adapter) as s, torch.no_grad():
        answers = iter([RuntimeError("no"), None])

        def once(*args: Any, **kwargs: Any) -> Any:
            error = next(answers, None)
            if error:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(model, fails, once)
        with pytest.raises(RuntimeError, match="no"):
            s.capture("pattern", 1)
        assert (model.config._attn_implementation, _OPEN.get()) == (before, ())
        s.capture("pattern", 1)
        assert s.run(batch_of())["pattern", 1].shape[1] == adapter.n_heads
    assert (leftovers(model), model.config._attn_implementation, _OPEN.get()) == ([], before, ())


def test_columns_are_no_positions_while_decoding(llama: Found) -> None:
    batch = batch_of()
    for at in (batch.last, [1, 2, 3], slice(0, 1)):
        with Session(*llama) as s:
            s.capture("mlp_out", 1, at=at)
            with pytest.raises(ConfigError, match=r"one new token.*at=-1"):
                s.generate(batch, 2)


def test_naming_no_head_changes_nothing(llama: Found) -> None:
    with Session(*llama) as s, torch.no_grad():
        s.ablate("z", 1, heads=[])
        assert torch.equal(s.run(batch_of()).logits, plain_logits(s.model, batch_of()))


@pytest.mark.parametrize("heads", [None, [1, 2]])
@pytest.mark.parametrize("at", [None, -1])
def test_ablation_with_the_mean_counts_real_tokens_only_and_all_of_them(
    llama: Found, heads: list[int] | None, at: int | None
) -> None:
    batch = batch_of()
    with Session(*llama) as s, torch.no_grad():
        s.capture("z", 1)
        clean = s.run(batch)["z", 1]
        s.ablate("z", 1, with_="mean", heads=heads, at=at)
        got = s.run(batch)["z", 1]
    mean = torch.stack([clean[i, -len(row) :].sum(0) for i, row in enumerate(ROWS)]).sum(0) / sum(map(len, ROWS))
    expected = clean.clone()
    for head in range(4) if heads is None else heads:
        if at is None:
            expected[:, :, head] = mean[head]
        else:
            expected[:, at, head] = mean[head]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family_", ["llama", "opt"])
def test_ablation_with_zero_or_a_tensor(family_: str) -> None:
    vector = torch.arange(32.0)
    with Session(*find(family_)) as s, torch.no_grad():
        s.capture("mlp_out", 1)
        s.ablate("mlp_out", 1)
        assert s.run(batch_of())["mlp_out", 1].abs().max() == 0
        s.ablate("mlp_out", 1, with_=vector, at=-2)
        got = s.run(batch_of())["mlp_out", 1]
    assert torch.equal(got[:, -2], vector.expand(3, 32))
    assert got[:, -1].abs().max() == 0


# --- gradients ----------------------------------------------------------------------------------------


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    return logits.log_softmax(-1)[torch.arange(3), batch.last, 5].sum()


def gradient_by_hand(model: Any, adapter: ModelAdapter, batch: Batch, site: str, layer: int) -> Tensor:
    """The same gradient by plain torch: the module's tensor replaced by a leaf of the same value."""
    paths = adapter.layers[layer]
    layout = getattr(paths, site, None) if site in ("q", "k", "v") else None
    path = layout.path if layout else {"z": paths.o, "resid_post": paths.block}.get(site) or getattr(paths, site)
    leaf: list[Tensor] = []

    def substitute(value: Tensor) -> Tensor:
        leaf.append(value.detach().clone().requires_grad_())
        return leaf[0].clone()

    def at_output(m: nn.Module, args: Any, output: Any) -> Any:
        return (substitute(output[0]), *output[1:]) if isinstance(output, tuple) else substitute(output)

    module = model.get_submodule(path)
    if site == "z":
        handle = module.register_forward_pre_hook(lambda m, args: (substitute(args[0]),))
    else:
        handle = module.register_forward_hook(at_output)
    kwargs = {"position_ids": batch.position_ids} if adapter.takes_position_ids else {}
    loss_of(model(batch.ids, attention_mask=batch.mask, **kwargs).logits, batch).backward()
    handle.remove()
    grad = leaf[0].grad
    assert grad is not None
    if layout:
        return grad[..., layout.index(grad.device)]
    return grad.unflatten(-1, (adapter.n_heads, -1)) if site == "z" else grad


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "z", "q", "v"])
@pytest.mark.parametrize("family_", ["llama", "gpt2", "falcon"])
def test_captures_with_grad_hold_the_gradient_that_autograd_gives(family_: str, site: str, frozen: bool) -> None:
    model, adapter = find(family_)
    model.requires_grad_(not frozen)
    batch = batch_of()
    expected = gradient_by_hand(model, adapter, batch, site, 1)
    with Session(model, adapter) as s, torch.no_grad():
        s.capture(site, 1)
        value = s.run(batch)[site, 1]
    with Session(model, adapter) as s:
        s.capture(site, 1, grad=True)
        out = s.run(batch)
        loss_of(out.logits, batch).backward()
    kept = out[site, 1]
    assert kept.grad is not None
    assert expected.abs().max() > 1e-5
    assert torch.equal(kept.detach(), value)
    torch.testing.assert_close(kept.grad, expected, atol=1e-6, rtol=1e-5)


def test_several_captures_with_grad_fill_each_other_s_gradients_too() -> None:
    model, adapter = find("gpt2")
    batch = batch_of()
    with Session(model, adapter) as s:
        for site in ("q", "k", "v", "z", "attn_out", "resid_mid", "resid_post"):
            s.capture(site, 1, grad=True)
        out = s.run(batch)
        loss_of(out.logits, batch).backward()
    for site in ("q", "k", "v", "z", "attn_out"):
        torch.testing.assert_close(
            out[site, 1].grad, gradient_by_hand(model, adapter, batch, site, 1), atol=1e-6, rtol=1e-5
        )
    torch.testing.assert_close(out["resid_mid", 1].grad, out["attn_out", 1].grad, atol=1e-6, rtol=1e-5)


def test_gradients_reach_the_value_of_a_patch(llama: Found) -> None:
    model, adapter = llama
    batch = batch_of()
    value = torch.zeros(32, requires_grad=True)
    with Session(model, adapter) as s:
        s.patch("mlp_out", 1, lambda x: x + value)
        loss_of(s.run(batch).logits, batch).backward()
    torch.testing.assert_close(
        value.grad, gradient_by_hand(model, adapter, batch, "mlp_out", 1).sum((0, 1)), atol=1e-6, rtol=1e-5
    )


# --- stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deepest", "ran"), [("resid_pre", [1, 1, 0]), ("mlp_in", [1, 1, 0]), (None, [1, 1, 1])])
def test_nothing_above_the_deepest_capture_runs(family: str, deepest: str | None, ran: list[int]) -> None:
    """A block counts as run when its `down` projection or the capture in it is passed."""
    model, adapter = find(family)
    heads = 0
    entered = [0, 0, 0]

    def count_head(m: nn.Module, args: Any) -> None:
        nonlocal heads
        heads += 1

    def count(layer: int) -> Callable[..., None]:
        def hook(m: nn.Module, args: Any) -> None:
            entered[layer] += 1

        return hook

    model.get_submodule(adapter.unembed).register_forward_pre_hook(count_head)
    for i, paths in enumerate(adapter.layers):
        model.get_submodule(paths.block).register_forward_pre_hook(count(i))
    with Session(model, adapter) as s, torch.no_grad():
        if deepest is not None:
            s.capture("resid_post", 0)
            s.capture(deepest, 1)
            s.capture(deepest, 0)
        s.run(batch_of(), read=None)
    # The session's hook stands before the counting one, so a block stopped at its input is not counted.
    expected = [1, 0, 0] if deepest == "resid_pre" else ran
    assert entered == expected
    assert heads <= (1 if deepest is None else 0)


def test_a_stopped_run_gives_what_the_full_run_gives(family: str) -> None:
    model, adapter = find(family)
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("resid_post", 1)
        s.capture("z", 0)
        stopped, full = s.run(batch_of(), read=None), s.run(batch_of())
    assert stopped.logits is None
    assert torch.equal(stopped["resid_post", 1], full["resid_post", 1])
    assert torch.equal(stopped["z", 0], full["z", 0])


# --- threads ------------------------------------------------------------------------------------------


def test_another_thread_s_forward_sees_nothing_of_an_open_session(llama: Found) -> None:
    model, adapter = llama
    batch = batch_of()
    clean = plain_logits(model, batch)
    with Session(model, adapter) as s, torch.no_grad():
        s.patch("resid_post", 1, 0.0)
        s.capture("mlp_out", 1)
        assert torch.equal(in_thread(lambda: plain_logits(model, batch)), clean)
        assert not torch.equal(plain_logits(model, batch), clean)  # this thread's own direct call is served


@pytest.mark.parametrize("read", [None, "all", "last"])
@pytest.mark.parametrize("layer", [None, 1])
def test_another_thread_s_forward_is_untouched_while_a_run_is_under_way(
    llama: Found, read: Any, layer: int | None
) -> None:
    """Stubs below a cone, the stop and the gathering of columns belong to the thread that runs."""
    model, adapter = llama
    batch = batch_of()
    clean = plain_logits(model, batch)
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(in_thread(lambda: plain_logits(model, batch)))
        return x

    with Session(model, adapter) as s, torch.no_grad():
        source: Batch | Cone = batch if layer is None else s.cone(batch, layer)
        s.patch("mlp_out", 1, look)
        s.capture("final")
        s.run(source, read=batch.last if read == "last" else read)
    assert torch.equal(seen[0], clean)


def test_two_threads_take_turns_on_one_lm() -> None:
    lm = make_lm("llama")
    batch = lm.encode(["the thing", "an island is"])
    factors = (0.0, 2.0)

    def scaled(factor: float) -> Tensor:
        with lm.session() as s, torch.no_grad():
            s.patch("mlp_out", 1, lambda x: factor * x)
            s.capture("resid_post", 1)
            return s.run(batch).logits

    expected = [scaled(f) for f in factors]
    wrong: list[str] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(scaled(factors[i]), expected[i]):
                wrong.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert leftovers(lm.model) == []


# --- compiled and offloaded models --------------------------------------------------------------------


def test_a_compiled_model_honours_hooks_inside_a_session() -> None:
    model, adapter = find("llama")
    batch = batch_of()
    with Session(model, adapter) as s, torch.no_grad():
        s.patch("mlp_out", 1, 0.0)
        expected = s.run(batch).logits
    torch._dynamo.reset()
    model.compile(backend="eager")
    clean = plain_logits(model, batch)  # compiled by now
    with Session(model, adapter) as s, torch.no_grad():
        s.patch("mlp_out", 1, 0.0)
        assert torch.equal(s.run(batch).logits, expected)
        cone = s.cone(batch, 1)
        assert torch.equal(s.run(cone).logits, expected)
    assert torch.equal(plain_logits(model, batch), clean)
    assert not torch.equal(expected, clean)


def test_attention_is_read_in_float64_where_rows_begin_with_pads(llama: Found) -> None:
    """Eager attention takes the softmax in float32, in which a float64 mask is -inf."""
    model, adapter = llama
    model = model.double()
    batch = pad_rows(ROWS)
    assert not bool(batch.mask.all())
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("pattern")
        out = s.run(batch)
    assert not bool(out["pattern", 1].isnan().any())
    at_end = batch.last[:, None, None].expand(-1, 1, out.logits.shape[-1])
    torch.testing.assert_close(
        out.logits.gather(1, at_end), plain_logits(model, batch).gather(1, at_end), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family_", ["llama", "gpt2"])
def test_offloaded_weights_make_no_difference(tmp_path: Path, family_: str, where: str) -> None:
    plain, adapter = find(family_)
    model = make_model(family_)
    if where == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, str(tmp_path), execution_device="cpu")
    assert detect(model) == adapter
    forwards = {name: vars(m).get("forward") for name, m in model.named_modules()}
    batch = pad_rows(ROWS, pivots=[2, 1, 3])
    outputs = []
    for m in (plain, model):
        with Session(m, adapter) as s, torch.no_grad():
            cone = s.cone(batch, 1, 3)
            capture = s.capture("mlp_out", 1)
            early = s.run(batch, read=None)["mlp_out", 1]
            s.remove(capture)
            s.patch("mlp_out", 2, lambda x: 2 * x)
            outputs.append((early, s.run(batch).logits, s.run(cone).logits))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    assert {name: vars(m).get("forward") for name, m in model.named_modules()} == forwards
    assert {p.device.type for p in model.parameters()} == {"meta"}


# --- cones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 4])
def test_a_cone_can_be_run_many_times_and_by_rows(llama: Found, cut: int) -> None:
    model, adapter = llama
    batch = pad_rows(ROWS, pivots="right")
    with Session(model, adapter) as s, torch.no_grad():
        full = s.run(batch).logits
        cone = s.cone(batch, 1, cut)
        first, second = s.run(cone).logits, s.run(cone).logits
        rows = s.run(cone.rows([2, 0, 0])).logits
    assert torch.equal(first, second)
    real = batch.mask[:, cut:].bool()
    assert (first - full[:, cut:])[real].abs().max() <= 1e-5
    assert (rows - full[[2, 0, 0], cut:])[real[[2, 0, 0]]].abs().max() <= 1e-5


def test_a_cone_outside_the_model_or_the_batch_is_refused(llama: Found) -> None:
    with Session(*llama) as s:
        with pytest.raises(ConfigError, match="0 to 2"):
            s.cone(batch_of(), 3)
        for cut in (-1, 7):
            with pytest.raises(ConfigError, match="0 to 6"):
                s.cone(batch_of(), 1, cut)


def test_a_cone_made_by_other_weights_is_refused(llama: Found) -> None:
    version = 0
    with Session(*llama, stamp=lambda layer: version if layer is None else 0) as s:
        whole, late = s.cone(batch_of(), 1), s.cone(batch_of(), 1, 4)
        version = 1
        s.run(whole)
        with pytest.raises(StaleState, match="layer 1"):
            s.run(late)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_model_has_no_positions_for_is_refused(family: str) -> None:
    lm = make_lm(family)
    most = lm.model.config.max_position_embeddings
    fits = pad_rows([[3] * most])
    assert lm.forward(fits).shape[1] == most
    with pytest.raises(RequestError, match=f"{most + 1:,} tokens, and the model reads {most:,} at most"):
        lm.forward(pad_rows([[3] * (most + 1)]))
    with pytest.raises(RequestError, match="at most"):
        lm.generate_ids(fits, 1)


@pytest.mark.parametrize("with_", ["zero", "mean", "tensor"])
def test_ablating_is_confined_to_its_heads_and_positions(llama: Found, with_: str) -> None:
    """Whatever is put in: the heads and positions that were not named keep their bits."""
    model, adapter = llama
    batch = batch_of()
    with Session(model, adapter) as s, torch.no_grad():
        s.capture("z", 1)
        clean = s.run(batch)["z", 1].clone()
    with Session(model, adapter) as s, torch.no_grad():
        value: Any = torch.full((clean.shape[-1],), 7.0) if with_ == "tensor" else with_
        s.ablate("z", 1, with_=value, heads=[2], at=-2)
        s.capture("z", 1)
        found = s.run(batch)["z", 1]
    changed = (found != clean).any(-1)  # (B, T, heads)
    expected = torch.zeros_like(changed)
    expected[:, -2, 2] = True
    assert torch.equal(changed, expected)
