"""Sessions within sessions: what is captured, patched and frozen inside is of the model as the outer one left it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import make_model
from tiny_lm import make_lm
from torch import Tensor

from editlab import LM
from editlab.errors import ConfigError, SiteNotReached, StaleState
from editlab.hooks.batch import pad_rows
from editlab.hooks.column import Column, column
from editlab.hooks.detect import detect
from editlab.hooks.session import Session

ROWS = [[5, 9, 30, 44, 51, 60, 21], [8, 31, 50, 12, 77, 3, 40]]
BATCH = pad_rows(ROWS)
OTHER = pad_rows([[15, 19, 20, 34, 11, 61, 71], [81, 13, 55, 72, 17, 33, 42]])
SITES = ["resid_pre", "attn_in", "q", "v", "z", "attn_out", "resid_mid", "mlp_key", "mlp_out", "resid_post"]
TAPPED = ["q_rot", "k_rot", "scores", "pattern"]


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture
def lm() -> LM:
    tiny = make_lm("llama")
    return LM(tiny._view._base_model.double(), tiny.tokenizer)


@pytest.mark.parametrize("site", [*SITES, *TAPPED])
def test_an_inner_capture_sees_the_outer_patch(lm: LM, site: str) -> None:
    clean = lm.capture(BATCH, (site, 1))[site, 1]
    with lm.session() as outer:
        outer.patch(site, 1, double)
        torch.testing.assert_close(lm.capture(BATCH, (site, 1))[site, 1], 2 * clean)


@pytest.mark.parametrize("site", ["mlp_out", "pattern"])
def test_patches_act_from_the_outer_session_to_the_inner_one_and_captures_come_last(lm: LM, site: str) -> None:
    clean = lm.capture(BATCH, (site, 1))[site, 1]
    with lm.session() as outer, lm.session() as inner, torch.no_grad():
        inner.patch(site, 1, lambda x: x + 1)  # whichever session speaks first
        inner.capture(site, 1)
        outer.patch(site, 1, double)
        outer.capture(site, 1)
        seen = inner.run(BATCH)[site, 1]
        torch.testing.assert_close(seen, 2 * clean + 1)
        torch.testing.assert_close(outer.captured[site, 1], seen)
    with lm.session() as outer, lm.session() as inner, torch.no_grad():
        outer.capture(site, 1, when="before")
        outer.patch(site, 1, double)
        inner.capture(site, 1, when="before")
        inner.patch(site, 1, torch.zeros_like)
        torch.testing.assert_close(inner.run(BATCH)[site, 1], 2 * clean)
        torch.testing.assert_close(outer.captured[site, 1], clean)


def test_a_middle_stream_is_that_of_the_patched_block_input(lm: LM) -> None:
    with lm.session() as outer:
        outer.patch("resid_pre", 1, double)
        got = lm.capture(BATCH, ["resid_pre", "attn_out", "resid_mid"])
    torch.testing.assert_close(got["resid_mid", 1], got["resid_pre", 1] + got["attn_out", 1])


def test_an_earlier_result_is_not_written_over_by_a_later_inner_run(lm: LM) -> None:
    with lm.session() as s, torch.no_grad():
        s.capture("mlp_out", 1)
        first = s.run(BATCH)
        kept = first["mlp_out", 1].clone()
        lm.forward(OTHER)
    assert torch.equal(first["mlp_out", 1], kept)


def test_a_run_from_within_a_patch_leaves_the_frame_of_the_outer_run(lm: LM) -> None:
    """The inner pass has other columns; the outer patch after it must still find its own."""
    short = pad_rows([[3, 4]])
    with lm.session() as s, torch.no_grad():

        def look(x: Tensor) -> Tensor:
            lm.model(short.ids)
            lm.forward(short)
            return x

        s.patch("mlp_out", 0, lambda x: look(x) if x.shape[1] == BATCH.width else x)
        s.patch("mlp_out", 1, 0.0, at=-1)
        s.capture("mlp_out", 1)
        got = s.run(BATCH)["mlp_out", 1]
    assert got[:, -1].abs().max() == 0 and got[:, -2].abs().min() > 0


@pytest.mark.parametrize("changes", [{"at": -1}, {"when": "before"}, {"grad": True}], ids=str)
def test_a_second_capture_of_a_site_that_would_replace_the_first_is_refused(lm: LM, changes: dict[str, object]) -> None:
    with lm.session() as s, torch.no_grad():
        s.capture("mlp_out", 1)
        with pytest.raises(ConfigError, match="captures 'mlp_out' in layer 1 already"):
            s.capture("mlp_out", 1, **changes)  # type: ignore[arg-type]
        s.capture("mlp_out", 1)  # the same again is the same
        s.capture("mlp_out", 0, at=[1, 2])
        s.capture("mlp_out", 0, at=torch.tensor([1, 2]))
        with pytest.raises(ConfigError, match="already"):
            s.capture("mlp_out", 0, at=torch.tensor([1, 3]))
        assert s.run(BATCH)["mlp_out", 1].shape == (2, 7, 32)


# --- path patching ------------------------------------------------------------------------------------

Outer = Callable[[Session], object]
OUTERS: dict[str, Outer] = {
    "nothing": lambda s: None,
    "mlp_out": lambda s: s.patch("mlp_out", 1, double),
    "mlp_out, last": lambda s: s.patch("mlp_out", 1, double, at=-1),
    "mlp_out, another position": lambda s: s.patch("mlp_out", 0, double, at=2),
    "z": lambda s: s.patch("z", 1, double),
    "pattern": lambda s: s.patch("pattern", 1, lambda x: x.flip(-1)),
    "resid_pre": lambda s: s.patch("resid_pre", 1, double),
    "resid_post": lambda s: s.patch("resid_post", 1, double),
    "final": lambda s: s.patch("final", None, double),
}


def column_of(lm: LM, batch: object = BATCH) -> Column:
    with lm.session() as s, torch.no_grad():
        return column(s, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("outer", OUTERS)
def test_path_patching_under_an_outer_patch_is_that_of_the_patched_model(lm: LM, outer: str) -> None:
    """Against full forwards of one session: the outer patch, every head frozen, then one replaced."""
    n = lm.adapter.n_heads
    tokens = torch.arange(20)
    put = OUTERS[outer]
    with lm.session() as around, torch.no_grad():
        put(around)
        found, other = column_of(lm), column_of(lm, OTHER)
        clean, corrupt = lm.capture(BATCH, "z"), lm.capture(OTHER, "z")
        rows = torch.arange(2).repeat_interleave(n)
        got = []
        for layer in range(3):
            shift = found.project(layer, other.z[:, layer] - found.z[:, layer]).flatten(0, 1)
            attention = [found.attention[rows, m] + (shift if m == layer else 0) for m in range(3)]
            final = found.run(layer, rows, attention.__getitem__)
            got.append(found.logits(final, tokens.expand(2 * n, -1)).unflatten(0, (2, n)))
            direct = found.direct(layer, rows, shift * 0)
            want = found.final[rows]
            torch.testing.assert_close(direct, want)
    for layer in range(3):
        for head in range(n):
            with lm.session() as s, torch.no_grad():
                put(s)
                for m in range(3):
                    s.patch("z", m, clean["z", m])
                s.patch("z", layer, corrupt["z", layer][:, :, [head]], heads=[head])
                want = s.run(BATCH, read=BATCH.last).logits
            torch.testing.assert_close(got[layer][:, head], want[:, tokens], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("site", "layer"), [("attn_out", 1), ("attn_raw", 0), ("resid_mid", 1), ("logits", None)])
def test_path_patching_refuses_a_patch_that_hides_its_heads(lm: LM, site: str, layer: int | None) -> None:
    with lm.session() as outer:
        outer.patch(site, layer, double)
        with pytest.raises(ConfigError, match=f"while a patch of '{site}'.* is in force"):
            column_of(lm)


def test_a_column_is_not_run_under_other_patches_than_it_was_made_under(lm: LM) -> None:
    found = column_of(lm)
    with lm.session() as s, torch.no_grad():
        s.patch("mlp_out", 1, double)
        with pytest.raises(StaleState, match="other patches"):
            found.run(0, torch.arange(2), lambda n: found.attention[:, n])


# --- cones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 4])
@pytest.mark.parametrize(
    ("site", "layer"), [("mlp_out", 0), ("pattern", 1), ("embed", None), ("resid_pre", 2), ("mlp_out", 2)]
)
def test_a_cone_under_patches_that_stay_in_force_is_the_patched_model_s(
    lm: LM, site: str, layer: int | None, cut: int
) -> None:
    """Also one of what enters the cone's own layer, which acts once and not twice."""
    with lm.session() as outer, torch.no_grad():
        outer.patch(site, layer, double)
        want = lm.forward(BATCH)[:, cut:]
        cone = lm.prefix(BATCH, 2, cut)
        torch.testing.assert_close(lm.run_from(cone).logits, want)
        torch.testing.assert_close(outer.run(cone).logits, want)  # whose own patch lies below, and did its work


@pytest.mark.parametrize("who", ["the same session", "an outer session"])
@pytest.mark.parametrize(("site", "layer"), [("mlp_out", 0), ("pattern", 1), ("embed", None)])
@pytest.mark.parametrize("cut", [0, 4])
def test_a_cone_is_refused_where_other_patches_are_in_force_below_it(
    lm: LM, who: str, site: str, layer: int | None, cut: int
) -> None:
    with lm.session() as outer, torch.no_grad():
        runner = outer if who == "the same session" else lm.session()
        plain = outer.cone(BATCH, 2, cut)
        patch = outer.patch(site, layer, double)
        patched = outer.cone(BATCH, 2, cut)
        with runner if runner is not outer else torch.no_grad():
            with pytest.raises(StaleState, match=f"made without the patch of '{site}'"):
                runner.run(plain)
            runner.run(patched)
            outer.remove(patch)
            with pytest.raises(StaleState, match=f"made under a patch of '{site}'.* not in force any more"):
                runner.run(patched)
            runner.run(plain)
            runner.run(plain.rows([1]))


def test_a_patch_above_counts_where_it_reached_the_keys_of_earlier_columns(lm: LM) -> None:
    with lm.session() as s, torch.no_grad():
        for at, is_in_keys in ((None, True), (torch.tensor([1, 1]), True), (torch.tensor([5, 5]), False)):
            patch = s.patch("mlp_out", 1, double, at=at)
            whole, late = s.cone(BATCH, 1), s.cone(BATCH, 1, 4)
            s.remove(patch)
            torch.testing.assert_close(s.run(whole).logits, s.run(BATCH).logits)
            if is_in_keys:
                with pytest.raises(StaleState, match="'mlp_out' in layer 1"):
                    s.run(late)
            else:
                torch.testing.assert_close(s.run(late).logits, s.run(BATCH).logits[:, 4:])


def test_a_patch_of_earlier_columns_that_a_cone_was_made_under_may_stay(lm: LM) -> None:
    with lm.session() as s, torch.no_grad():
        s.patch("mlp_out", 1, double, at=torch.tensor([1, 2]))
        cone = s.cone(BATCH, 1, 4)
        torch.testing.assert_close(s.run(cone).logits, s.run(BATCH).logits[:, 4:])


def test_a_cone_of_a_patched_run_on_purpose_outlives_the_session_s_patches_but_not_the_outer_one_s(lm: LM) -> None:
    with lm.session() as outer, torch.no_grad():
        patch = outer.patch("mlp_out", 0, double)
        with lm.session() as s:
            s.patch("embed", None, double)
            want = s.run(BATCH).logits
            cone = s.cones_at(BATCH, [2], [0], of_patched=True)[2, 0]
        torch.testing.assert_close(lm.run_from(cone).logits, want)
        outer.remove(patch)
        with pytest.raises(StaleState, match="'mlp_out' in layer 0"):
            lm.run_from(cone)


def test_a_capture_below_a_cone_is_still_not_reached(lm: LM) -> None:
    with lm.session() as s, torch.no_grad():
        cone = s.cone(BATCH, 2)
        s.capture("mlp_out", 0)
        with pytest.raises(SiteNotReached, match="capture of 'mlp_out' in layer 0"):
            s.run(cone)


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_hooks_go_with_the_last_session_that_needs_them(order: str) -> None:
    model = make_model("llama")
    adapter = detect(model)
    clean = partial(model, BATCH.ids)
    plain, attention = clean().logits, model.config._attn_implementation
    outer, inner = Session(model, adapter), Session(model, adapter)
    outer.__enter__()
    inner.__enter__()
    for s in (inner, outer):
        s.patch("mlp_out", 1, double)
        s.patch("pattern", 1, double)
    first, second = (inner, outer) if order == "inner first" else (outer, inner)
    first.__exit__(None, None, None)
    once = clean().logits
    with Session(model, adapter) as alone:
        second.__exit__(None, None, None)
        assert model.config._attn_implementation == attention
        alone.patch("mlp_out", 1, double)
        alone.patch("pattern", 1, double)
        assert torch.equal(clean().logits, once)
    assert torch.equal(clean().logits, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
