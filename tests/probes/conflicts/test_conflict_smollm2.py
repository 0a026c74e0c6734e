"""The default model: what was measured on it once holds again. Bounds are wide of the measurements."""

from __future__ import annotations

import pytest
import torch

from editlab import LM
from editlab.data.conflicts import cases_of_relation
from editlab.hooks.heads import HeadGains
from editlab.probes.conflicts.heads import map_heads
from editlab.probes.conflicts.items import Items, ItemSettings, build_items
from editlab.probes.conflicts.path_patching import head_scores
from editlab.probes.conflicts.rates import rates
from editlab.probes.conflicts.readout import Prompts, judged

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.from_pretrained()


@pytest.fixture(scope="module")
def items(lm: LM) -> Items:
    return build_items(lm, cases_of_relation("capital"), ItemSettings(draws=2))


def test_the_column_is_frozen_full_forwards(lm: LM, items: Items) -> None:
    item = items.items[0]
    found = head_scores(lm, [item], draws=1)["both"][0]
    batch = lm.encode(item.prompt)
    clean = lm.capture(batch, ["z"])
    corrupt = lm.capture(lm.encode(item.corrupted("both", item.partners[0])), ["z"])
    base = lm.forward(batch, batch.last)[0]
    for layer, head in ((23, 4), (23, 0), (24, 4), (10, 3)):
        with lm.session() as s, torch.no_grad():
            for n in range(lm.adapter.n_layers):
                s.patch("z", n, clean["z", n])
            s.patch("z", layer, corrupt["z", layer][:, -1, [head]], at=-1, heads=[head])
            logits = s.run(batch, read=batch.last).logits
        assert logits is not None
        change = base - logits[0]
        assert float(found[layer, head]) == pytest.approx(float(change[item.tok_mem] - change[item.tok_ctx]), abs=1e-4)


def test_pruning_the_memory_heads_of_some_subjects_makes_others_follow_the_context(lm: LM, items: Items) -> None:
    heads = map_heads(lm, items.split("discovery"))
    best = heads.ranked("memory")[:5]
    assert best[0] == (23, 4)  # 2.6 logits; the next memory head 1.4
    test = items.split("test")
    prompts = Prompts(lm, [i.ids for i in test.items])
    before = rates("unpruned", judged(prompts.every(None), test)).context.mean
    after = rates("pruned", judged(prompts.every(HeadGains.pruning(best)), test)).context.mean
    assert after > before + 0.3  # 0.24 to 0.89
    layers = [layer for layer, _ in best]
    others = [(layer, h) for layer in sorted(set(layers)) for h in range(9) if (layer, h) not in best]
    random = HeadGains.pruning(others[: len(best)])
    assert rates("random", judged(prompts.every(random), test)).context.mean < before + 0.2
