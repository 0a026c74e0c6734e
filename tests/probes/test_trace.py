"""Causal tracing: exact against full forwards, the identities that restoration obeys, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from scipy import stats
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.errors import RequestError
from editlab.hooks.batch import pad_rows
from editlab.probes.trace import SITE, Config, noise_scale, trace, trace_many
from editlab.probes.trace_results import ROLES, Trace, TraceAverage, roles

FACT = Fact(prompt="In the old town of {} the people made", subject="New Vinland", target_new="x")
QUICK: dict[str, Any] = {"samples": 3, "min_gap": -1.0, "noise": 3.0}


def traced(lm: LM, **settings: Any) -> Trace:
    """A trace of what a random model says."""
    return trace(lm, FACT, Config(**(QUICK | settings)))


def by_full_forwards(lm: LM, found: Trace) -> np.ndarray:
    """(L, T, S) the same numbers, each cell with forwards of the whole model on the whole prompt."""
    config, site = found.config, SITE[found.config.kind]
    ids, _ = lm.tokens(FACT.text, sink=True)
    first, stop = found.subject
    n_layers = lm.adapter.n_layers
    batch = pad_rows([ids], device=lm.device)
    with lm.session() as s, torch.no_grad():
        s.capture(site, None)
        out = s.run(batch)
    clean = [out.captured[site, n] for n in range(n_layers)]
    token = int(out.logits[0, -1].argmax())
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, stop - first, lm.adapter.d_model, generator=generator) * found.noise_std
    rows = batch.rows(torch.zeros(config.samples, dtype=torch.long))

    def noisy(part: torch.Tensor) -> torch.Tensor:
        part = part.clone()
        part[:, first:stop] += noise
        return part

    want = np.zeros((n_layers, len(ids), config.samples))
    for layer in range(n_layers):
        for t in range(len(ids)):
            with lm.session() as s, torch.no_grad():
                s.patch("embed", None, noisy)
                for n in config.layers(layer, n_layers):
                    s.patch(site, n, clean[n][0, t], at=torch.full((config.samples,), t))
                logits = s.run(rows).logits
            want[layer, t] = logits[:, -1].softmax(-1)[:, token].numpy()
    return want


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_trace_gives_the_numbers_of_full_forwards(family: str) -> None:
    lm = make_lm(family)
    found = traced(lm)
    assert found.restored == pytest.approx(by_full_forwards(lm, found), abs=1e-5)
    # The noise does something, and the cells differ, so the comparison is no comparison of constants.
    assert abs(found.gap) > 1e-4 and found.effect.std() > 1e-5


@pytest.mark.parametrize("kind", ["mlp", "attention", "residual"])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2"])
def test_windows_too(family: str, kind: str, window: int) -> None:
    lm = make_lm(family)
    found = traced(lm, kind=kind, window=window)
    assert found.restored == pytest.approx(by_full_forwards(lm, found), abs=1e-5)


def test_restoring_the_end_of_the_stream_gives_the_clean_run() -> None:
    found = traced(make_lm("llama"))
    assert found.restored[-1, -1] == pytest.approx(np.full(3, found.p_clean), abs=1e-6)
    # At the last layer no other token matters any more, and in front of the subject nothing does in any layer.
    assert np.abs(found.effect[-1, :-1]).max() < 1e-6
    assert np.abs(found.effect[:, : found.subject[0]]).max() == 0
    assert found.effect.shape == (3, len(found.tokens))


def test_a_layer_restored_at_all_tokens_is_the_clean_run_and_next_to_no_noise_is_no_effect() -> None:
    lm = make_lm("llama")
    found = traced(lm, noise=1e-6)
    assert abs(found.gap) < 1e-5 and np.abs(found.effect).max() < 1e-5
    batch = pad_rows([lm.tokens(FACT.text, sink=True)[0]])
    clean = lm.forward(batch)
    states = lm.capture(batch, [("resid_post", n) for n in range(3)])
    for layer in range(3):
        with lm.session() as s, torch.no_grad():
            s.patch("embed", None, lambda part: part + torch.randn(part.shape))
            assert not torch.allclose(s.run(batch).logits, clean, atol=1e-2)
            s.patch("resid_post", layer, states["resid_post", layer])
            assert torch.allclose(s.run(batch).logits, clean, atol=1e-5)


def test_noise_is_scaled_seeded_and_shared_by_all_cells() -> None:
    lm = make_lm("llama")
    one, two, other = traced(lm), traced(lm), traced(lm, seed=1)
    assert np.array_equal(one.restored, two.restored) and not np.array_equal(one.p_corrupt, other.p_corrupt)
    assert one.noise_std == pytest.approx(3 * noise_scale(lm))
    assert len(set(one.p_corrupt.tolist())) == 3
    # A cell that changes nothing has the corrupted run's own numbers, sample by sample.
    assert np.array_equal(one.restored[0, 0], one.p_corrupt)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("gpt2")
    whole = traced(lm)
    monkeypatch.setattr("editlab.probes.trace.BATCH_TOKENS", 1)
    assert traced(lm).restored == pytest.approx(whole.restored, abs=1e-6)


def test_a_model_of_one_layer_is_traced() -> None:
    found = traced(make_lm("llama", num_hidden_layers=1))
    last = len(found.tokens) - 1
    # Put back after the only layer, the last token's stream gives the clean answer, and no other token's does anything.
    assert found.restored[0, last] == pytest.approx(found.p_clean, abs=1e-5)
    assert found.restored[0, :last] == pytest.approx(np.broadcast_to(found.p_corrupt, (last, 3)), abs=1e-6)


def test_too_small_a_gap_is_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError, match=r"from \d+\.\d% to \d+\.\d% only.*min_gap"):
        trace(make_lm("llama"), FACT, Config(min_gap=1.0))


def test_an_answer_can_be_named() -> None:
    lm = make_lm("llama")
    named = trace(lm, FACT, Config(**QUICK), answer="stone")
    own = trace(lm, FACT, Config(**QUICK))
    assert named.answer != own.answer and named.p_clean < own.p_clean


def test_nothing_is_left_behind() -> None:
    lm = make_lm("llama")
    batch = lm.encode("the old town")
    before = lm.forward(batch)
    traced(lm)
    assert torch.equal(lm.forward(batch), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in lm.model.modules())


def test_roles_cover_each_token_once() -> None:
    assert roles(8, (1, 4)) == [[1], [2], [3], [4], [5, 6], [7]]
    assert roles(8, (1, 2)) == [[], [], [1], [2], [3, 4, 5, 6], [7]]
    assert roles(4, (2, 4)) == [[2], [], [3], [], [], []]
    assert len(ROLES) == 6


def planted(effect: dict[tuple[int, int], float], *, samples: int = 10, seed: int = 0) -> Trace:
    """A trace of five tokens and twelve layers, tokens 1 to 3 the subject's, whose effects at (layer, token) are given.

    Corrupted probabilities have a standard deviation of about one point; restored ones have the same noise, sample by
    sample, and their effect.
    """
    p_corrupt = 0.02 + 0.01 * np.random.default_rng(seed).permutation(np.linspace(-1.5, 1.5, samples))
    restored = np.tile(p_corrupt, (12, 5, 1))
    for cell, value in effect.items():
        restored[cell] += value
    restored[:, 4] += np.linspace(0, 0.7, 12)[:, None]  # the answer is read there, so all comes back in the end
    tokens = ("<s>", "E", "iffel", " Tower", " is")
    return Trace("p", tokens, (1, 4), "Paris", 0.75, p_corrupt, restored, 0.1, Config(samples=samples), "m")


def test_the_suggestion_follows_the_map_and_not_the_last_subject_token() -> None:
    # Of a real trace: the last token of "Eiffel Tower" has 0.9 points at layer 8, "iffel" 46 at layer 2.
    found = planted({(8, 3): 0.009, (1, 2): 0.40, (2, 2): 0.46, (3, 2): 0.38, (4, 2): 0.2})
    assert (found.subject_peak.layer, found.subject_peak.column) == (2, 2) and found.suggest_layers() == (1, 2, 3)
    assert found.suggestion.layer == 2 and not found.suggestion.last.is_above_noise
    for said in ("layers 1 to 3", "+46.0%", "token 'iffel'", "10 noise samples", "weaker evidence", "2301.04213"):
        assert said in found.suggestion.text
    assert "layer 2, token 'iffel' restores most (+46.0%)" in found.headline
    at_last = planted({(5, 3): 0.5, (6, 3): 0.45, (8, 2): 0.1})
    assert at_last.suggest_layers() == (5, 6) and "weaker evidence" not in at_last.suggestion.text


def test_a_peak_below_the_noise_of_the_corruption_is_none() -> None:
    # Every sample gains, so that the effect is certain when samples are paired, and yet it is less than they differ by.
    found = planted({(8, 3): 0.009})
    assert 0.009 < np.std(found.p_corrupt, ddof=1) < 0.011
    assert found.suggest_layers() == () and found.suggestion.layer is None
    assert "none restores more than noise (largest +0.9% at layer 8, token 'Tower'" in found.headline
    assert "No layer is suggested" in found.suggestion.text
    alone = planted({(2, 2): 0.5}, samples=1)
    assert alone.suggest_layers() == () and "1 noise sample cannot tell" in alone.suggestion.text


def test_noise_alone_suggests_layers_in_one_trace_of_twenty_at_most() -> None:
    rng, suggested = np.random.default_rng(0), 0
    for i in range(200):
        found = planted({}, seed=i)
        found.restored[:, 1:4] = np.abs(rng.normal(0.02, 0.01, (12, 3, 10)))
        suggested += bool(found.suggest_layers())
    assert suggested <= 10


def test_an_average_of_an_older_version_is_read_and_takes_its_noise_from_the_facts(tmp_path: Path) -> None:
    effects = np.random.default_rng(0).normal(0, 0.01, (8, 6, 6))
    effects[:, 3, 1] += 0.3
    folder = TraceAverage(effects, np.full(8, 0.8), np.full(8, 0.02), (), Config(), "m").save(tmp_path / "r")
    stored = json.loads((folder / "result.json").read_text())
    del stored["result"]["fields"]["errors"]
    (folder / "result.json").write_text(json.dumps(stored))
    found = TraceAverage.load(folder)
    assert found.suggest_layers() == (3,) and found.suggestion.peak.place == "middle subject tokens"
    effects[:, 3, 1] -= 0.3
    assert TraceAverage(effects, np.full(8, 0.8), np.full(8, 0.02), (), Config(), "m").suggest_layers() == ()


def test_an_average_counts_what_it_leaves_out() -> None:
    lm = make_lm("llama")
    facts = [
        Fact(id="a", prompt="The {} made", subject="old town", target_new="x"),
        Fact(id="b", prompt="{} and the river is", subject="Anna", target_new="x"),
        Fact(id="c", prompt="The sea by {} is", subject="Thule", target_new="x", target_true="zebra"),
    ]
    found = trace_many(lm, facts, Config(**QUICK))
    assert found.effects.shape == (2, 3, 6) and [name for name, _ in found.left_out] == ["c"]
    traces = [trace(lm, fact, Config(**QUICK)) for fact in facts[:2]]
    single = [t.by_role() for t in traces]
    assert np.array_equal(found.effects, np.stack(single), equal_nan=True)
    table = found.to_pandas()
    row = table[(table["layer"] == 1) & (table["role"] == "last subject token")].iloc[0]
    assert row["n"] == 2 and row["effect"] == pytest.approx(np.mean([s[1, 2] for s in single]))
    assert row["low"] <= row["effect"] <= row["high"]
    # The noise of two facts' mean, from the samples of each; the largest of 3 layers x 3 roles of the subject.
    variances = [(t.restored[1, t.subject[1] - 1].var(ddof=1) + t.p_corrupt.var(ddof=1)) / 3 for t in traces]
    quantile = stats.t.ppf(1 - 0.05 / 9, 2 * (3 - 1))
    assert row["noise"] == pytest.approx(quantile * np.sqrt(sum(variances)) / 2)
    assert "1 facts left out" in found.headline
    with pytest.raises(RequestError, match="None of 1 facts could be traced"):
        trace_many(lm, facts[2:], Config(**QUICK))


def test_figures_show_the_numbers() -> None:
    pytest.importorskip("plotly", reason="figures need the extra 'app' or 'notebook'")
    lm = make_lm("llama")
    found = traced(lm)
    heat = found.plot().data[0]
    assert np.allclose(np.asarray(heat.z), found.restored.mean(-1).T) and len(heat.y) == len(found.tokens)
    assert "nan" not in trace_many(lm, [FACT], Config(**QUICK)).headline  # one fact has no interval
    lines = trace_many(lm, [FACT, FACT], Config(**QUICK)).plot()
    assert any("last subject token (n=2)" in (line.name or "") for line in lines.data)
    assert found.headline in found._repr_html_().replace("&#x27;", "'")
