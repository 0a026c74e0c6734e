"""Settings at their bounds and models with few positions: each gives a result or one sentence."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from conftest import make_model
from test_several import FACTS, quick  # noqa: F401
from tiny_lm import make_lm, make_tokenizer

from editlab import LM, registry
from editlab.data.corpus import load_corpus
from editlab.edits.covariance import StatsSettings, collect
from editlab.errors import ConfigError, EditlabError
from editlab.probes.channels.harm import perplexity
from editlab.probes.conflicts.prune_costs import Prose
from editlab.rows import rewrite_rows

LONG = {"steps", "left_out", "openings"}  # that many of these take long, and are right


def bounds(field: Any) -> list[float]:
    """The ends of a numeric setting's range, and where it has no upper end something far away."""
    kind = str(field.annotation)
    if "dict" in kind or "tuple" in kind or not ("int" in kind or "float" in kind):
        return []
    ends = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    far = 1e30 if "float" in kind else 10**7
    low = ends.get("ge", 1e-30 if "gt" in ends else None)
    return [value for value in (low, ends.get("le", far)) if value is not None]


@pytest.mark.parametrize("method", registry.names())
def test_every_setting_at_its_bounds(method: str, quick: dict[str, Any]) -> None:  # noqa: F811
    fields = registry.get(method).Config.model_fields
    usual = quick | {"steps": 1, "contexts": {4: 1}, "stats_tokens": 300, "layer": 1}
    usual |= {"negatives": 2, "pool": 8, "near": 1}
    usual = {name: value for name, value in usual.items() if name in fields}
    lm = make_lm("gpt2", n_layer=2)
    facts = FACTS[:1] if method.startswith("rome") else FACTS[:2]
    for name, field in fields.items():
        for value in bounds(field)[: 1 if name in LONG else 2]:
            with suppress(EditlabError):  # anything else is a traceback
                lm.undo(lm.edit(facts, method, **(usual | {name: value})).id)


def test_wise_without_irrelevant_texts_and_with_too_many(quick: dict[str, Any]) -> None:  # noqa: F811
    lm = make_lm("llama")
    few = {"steps": 2, "contexts": {}, "layer": 1, "pool": 8}
    assert lm.edit(FACTS[:1], "wise", **(few | {"negatives": 0, "near": 0})).is_active
    lm.undo()
    for name, what in (("pool", "passages of prose"), ("near", "other subjects"), ("prose", "sentences of prose")):
        with pytest.raises(ConfigError, match=rf"{what} are asked for, and there are"):
            lm.edit(FACTS[:1], "wise", **(few | {name: 10**7}))


def short_lm() -> LM:
    """A model that reads 128 tokens."""
    tokenizer = make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return LM(make_model("gpt2", n_positions=128, n_layer=2, **sizes), tokenizer, name="short")


def test_a_model_with_128_positions(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    lm = short_lm()
    assert collect(lm, [1], load_corpus(), StatsSettings(tokens=500))[1].count == 500
    assert lm.edit(FACTS[:1], "memit", **(quick | {"stats_text": "factbook", "layer": 0})).is_active
    assert len(lm.evaluate(FACTS[:1], metrics=("perplexity",), passages=2).lines) == 1
    assert perplexity(lm, 2) > 1
    monkeypatch.setattr("editlab.probes.conflicts.prune_costs.PASSAGES", 2)
    assert Prose(lm).batch.width == 128


def test_contexts_that_leave_a_prompt_no_room_are_left_out() -> None:
    lm = short_lm()
    rows = rewrite_rows(lm, FACTS[0], ["", "old town", "x y " * 60], sink=True)
    assert len(rows) == 2 and torch.isfinite(lm.forward(lm.encode([FACTS[0].text]))).all()
