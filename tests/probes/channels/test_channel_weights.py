"""Folded heads: they give the model's own queries, keys, values and attention, in every family."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES
from tiny_lm import make_lm
from torch import Tensor

from editlab import LM
from editlab.errors import ModelError, SiteUnavailable
from editlab.probes.channels import weights
from editlab.probes.channels.composition import compose
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.parts import MODES
from editlab.probes.channels.weights import check, layer_heads, rotations


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_matrices_give_the_models_queries_keys_and_values(family: str) -> None:
    lm = make_lm(family)
    assert check(lm) < 1e-5
    assert layer_heads(lm, 1).fold.centres is (
        family not in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2")
    )


def test_a_fold_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama")
    real = weights.fold_of
    monkeypatch.setattr(weights, "fold_of", lambda *a: weights.Fold(False, real(*a).gain * 1.01, real(*a).bias))
    with pytest.raises(ModelError, match=r"Layer 0 of Llama.*'q' differs from the model's own by 1\.0e-02"):
        factorise(lm)


def attention(lm: LM, layer: int, x: Tensor) -> Tensor:
    """(H, T, T) attention of a layer from folded matrices and rotations, for a residual stream (T, d)."""
    heads = layer_heads(lm, layer, torch.float64)
    x = heads.fold.scaled(x.double())
    q = torch.einsum("td,hde->hte", x, heads.q) + heads.b_q[:, None]
    k = (torch.einsum("td,hde->hte", x, heads.k) + heads.b_k[:, None])[heads.group]
    n = len(x)
    turns = {n_apart: rotations(lm, n_apart, torch.float64)[layer] for n_apart in range(n)}
    scores = torch.full((len(q), n, n), -torch.inf, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            scores[:, i, j] = torch.einsum("he,ef,hf->h", q[:, i], turns[i - j], k[:, j]) / q.shape[-1] ** 0.5
    return scores.softmax(-1)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("gpt2", {}), ("gpt_neox", {}), ("phi", {"partial_rotary_factor": 0.5}), ("qwen3", {})],
)
def test_t14_folded_matrices_and_rotations_give_the_models_attention(family: str, changes: dict[str, float]) -> None:
    lm = make_lm(family, **changes)
    batch = lm.encode("the old town")
    with lm.session() as s, torch.no_grad():
        s.capture("resid_pre")
        s.capture("pattern")
        seen = s.run(batch, read=None).captured
    for layer in range(3):
        if lm.adapter.layers[layer].q_norm is not None:
            continue  # what that norm divides by is left out of scores, so attention is another; see the next test
        own = seen["pattern", layer][0].double()
        assert (attention(lm, layer, seen["resid_pre", layer][0]) - own).abs().max() < 1e-5
        assert own.std() > 0.05  # attention is not uniform


def test_t15_rotations_are_rotations_and_add_up() -> None:
    for family, partial in (("llama", False), ("gpt_neox", True), ("gpt2", None), ("qwen3", False)):
        lm = make_lm(family)
        one, two, three = (rotations(lm, n, torch.float64)[1] for n in (1, 2, 3))
        eye = torch.eye(8, dtype=torch.float64)
        assert (one @ one.T - eye).abs().max() < 1e-6 and (one @ two - three).abs().max() < 1e-6
        assert (rotations(lm, -2, torch.float64)[1] - two.T).abs().max() < 1e-12
        still = (one - eye).abs().amax(1) < 1e-6
        # NeoX turns a quarter of a head's dimensions, GPT-2 none.
        assert int(still.sum()) == {False: 0, True: 6, None: 8}[partial]
        heads = compose([factorise(lm, 0)], "q").head
        turned = compose([factorise(lm, 5)], "q").head
        change = torch.as_tensor(heads - turned).nan_to_num().abs().max()
        assert (change < 1e-6) == (partial is None)
    both = compose([factorise(lm, 0), factorise(lm, 5)], "k")
    assert both.head[0, 5] ** 2 == pytest.approx(
        (compose([factorise(lm, 0)], "k").head[0, 5] ** 2 + compose([factorise(lm, 5)], "k").head[0, 5] ** 2) / 2
    )
    with pytest.raises(SiteUnavailable):
        rotations(make_lm("falcon"), 1)


def test_t18_bf16_weights_are_read_in_float32() -> None:
    lm = make_lm("llama")
    half = make_lm("llama")
    half = LM(half.model.to(torch.bfloat16), half.tokenizer)
    one, two = factorise(lm), factorise(half)
    assert two.s.dtype == torch.float32
    for mode in MODES:
        a, b = compose([one], mode).head, compose([two], mode).head
        assert torch.as_tensor(a - b).nan_to_num().abs().max() < 2e-2


def test_t16_scores_are_those_of_transformer_lens() -> None:
    """The same folding: gains into the reading weights; Llama's norm does not centre."""
    pytest.importorskip("transformer_lens", reason="the oracle is the extra 'interop'")
    from transformer_lens import FactoredMatrix

    lm = make_lm("llama")
    f = factorise(lm)
    ov, qk = [], []
    for layer in range(3):
        heads = layer_heads(lm, layer)
        g = heads.group
        ov += [FactoredMatrix(heads.v[g[h]], heads.o[h]) for h in range(4)]
        qk += [FactoredMatrix(heads.q[h], heads.k[g[h]].T) for h in range(4)]
    for mode in MODES:
        head = compose([f], mode).head
        for a, b in ((0, 4), (3, 11), (6, 9)):
            reader = {"q": qk[b], "k": qk[b].T, "v": ov[b]}[mode]
            theirs = (ov[a] @ reader).norm() / (ov[a].norm() * reader.norm())
            assert head[a, b] == pytest.approx(float(theirs), abs=1e-5)


def test_t16_scores_of_a_bridge_are_ours() -> None:
    pytest.importorskip("transformer_lens", reason="the oracle is the extra 'interop'")
    lm = make_lm("llama")
    bridge = lm.to_bridge()
    bridge.enable_compatibility_mode()
    f = factorise(lm)
    for mode in MODES:
        theirs = bridge.all_composition_scores(mode.upper()).reshape(12, 12)
        ours = torch.as_tensor(compose([f], mode, backward=False).head)
        forward = ~ours.isnan()
        assert (ours - theirs)[forward].abs().max() < 1e-5 and int(forward.sum()) == 48


def test_t16_spaces_overlap_as_transformer_lens_says() -> None:
    """Its projection kernel of what heads write and what queries read: the sum of squared cosines of our components."""
    pytest.importorskip("transformer_lens", reason="the oracle is the extra 'interop'")
    from transformer_lens.tools.analysis.projection_kernel import attention_head_subspace_affinity

    lm = make_lm("llama")
    bridge = lm.to_bridge()
    bridge.enable_compatibility_mode()
    theirs = attention_head_subspace_affinity(bridge, target_role="Q")
    f = factorise(lm)
    ours = torch.einsum("aid,bdj->abij", f.v, f.p).square().sum((-2, -1))
    there = theirs.valid_mask.reshape(12, 12)
    assert int(there.sum()) == 48
    assert (ours - theirs.scores.reshape(12, 12))[there].abs().max() < 1e-4
