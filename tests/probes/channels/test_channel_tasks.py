"""Tasks and roles: prompts hold what they say they hold, and scores read attention where they say they do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_lm import make_lm
from word_lm import word_lm

from editlab.errors import RequestError
from editlab.probes.channels import roles, tasks
from editlab.probes.channels.intervals import clustered, sign_flips
from editlab.probes.channels.tasks import Prompt

LM = word_lm()


def said(prompt: Prompt, position: int) -> str:
    return LM.tokenizer.decode([prompt.ids[position]])


@pytest.mark.parametrize("order", ["same", "shuffled"])
@pytest.mark.parametrize("length", [2, 3, 6])
def test_t22_lists_hold_each_item_once_and_the_target_is_not_done(length: int, order: tasks.Order) -> None:
    prompts = tasks.laundry(LM, length, 4, order=order, seed=3)
    assert prompts == tasks.laundry(LM, length, 4, order=order, seed=3)
    assert prompts != tasks.laundry(LM, length, 4, order=order, seed=4)
    assert Counter(p.target for p in prompts) == dict.fromkeys(range(length), 4)
    assert {p.template for p in prompts} == {0, 1}
    for p in prompts:
        listed, done = p.text.split(" already ")[0].rsplit(". ", 1)[0], p.text.split(" already ")[1]
        assert all(listed.count(f" the {item}") == 1 for item in p.items)
        assert f"the {p.items[p.target]}" not in done
        assert all(f"the {x}" in done for i, x in enumerate(p.items) if i != p.target)
        for i, item in enumerate(p.items):
            assert said(p, p.first[i]) == f" {item}" and LM.tokenizer.decode([p.item_ids[i]]) == f" {item}"
            assert (p.second[i] == -1) == (i == p.target)
            assert p.second[i] == -1 or (said(p, p.second[i]) == f" {item}" and p.second[i] > p.first[i])
        assert p.ids[0] == LM.sink and p.record()["pos"] == p.target and p.record()["n"] == length
        order_done = sorted((s, i) for i, s in enumerate(p.second) if s >= 0)
        if order == "same":
            assert [i for _, i in order_done] == sorted(i for _, i in order_done)


def test_splits_share_no_item_and_no_name() -> None:
    dev, test = (tasks.laundry(LM, 4, 6, split=s) for s in ("dev", "test"))
    items = [{x for p in part for x in p.items} for part in (dev, test)]
    names = [{n for p in part for n in tasks.NAMES if f" {n} " in p.text} for part in (dev, test)]
    assert not items[0] & items[1] and not names[0] & names[1] and min(map(len, [*items, *names])) > 3
    with pytest.raises(RequestError, match="A list of 40 items cannot be made"):
        tasks.laundry(LM, 40, 1, split="dev")
    with pytest.raises(RequestError, match="Only 0 of 24 names are single tokens"):
        tasks.laundry(make_lm("llama"), 3)


def test_two_names_are_balanced_over_templates_and_places() -> None:
    prompts = tasks.ioi(LM, 200)
    assert len({p.template for p in prompts}) == 10 and len(prompts) == 200
    assert Counter((p.template, p.target) for p in prompts) == {(t, k): 10 for t in range(10) for k in (0, 1)}
    for p in prompts:
        repeated = 1 - p.target
        assert p.text.count(p.items[repeated]) == 2 and p.text.count(p.items[p.target]) == 1
        assert [said(p, i) for i in p.first] == [f" {x}" for x in p.items]
        assert said(p, p.second[repeated]) == f" {p.items[repeated]}" and p.second[p.target] == -1
        assert p.text.endswith(" to") and said(p, len(p.ids) - 1) == " to"


def test_repeats_end_where_a_token_stands_again() -> None:
    prompts = tasks.repeats(LM, 40)
    assert {p.template for p in prompts} == set(range(8))
    for p in prompts:
        end, before = p.ids[-1], p.ids[: len(p.ids) - 1]
        assert before.count(end) == 1 and p.first[0] == before.index(end) + 1
        assert p.ids[p.first[0]] == p.item_ids[0]


def test_t23_scores_of_attention_made_by_hand_are_1_and_0() -> None:
    T, n = 5, 11
    made = torch.zeros(1, 3, n, n)
    for q in range(T + 1, n):
        for head, back in enumerate((1, T, T - 1)):
            made[0, head, q, q - back] = 1
    found = roles.on_repeats([made, made.flip(1)], T)
    for head, role in enumerate(("previous", "duplicate", "induction")):
        assert found[role][0, 0].tolist() == [float(h == head) for h in range(3)]
        assert found[role][0, 1].tolist() == [float(2 - h == head) for h in range(3)]
    mask = torch.zeros(n, n)
    mask[range(T + 1, n), range(1, n - T)] = 1
    with_sink = made.clone()
    with_sink[..., 0] += 0.5
    kept = with_sink.clone()
    assert roles.matched(with_sink, mask)[0].tolist() == [0, 1, 0]
    assert roles.matched(with_sink, mask, exclude_first=False)[0, 1] < 0.6
    own = torch.eye(n)[None] + made[:, 1]
    assert roles.matched(own, mask, exclude_own=True).item() == 1 and roles.matched(own, mask).item() < 1
    assert torch.equal(with_sink, kept)


def test_roles_have_a_score_and_an_interval_for_every_head() -> None:
    config = roles.Config(sequences=4, period=6, prompts=40, threshold=0.01)
    found = roles.head_roles(LM, config)
    assert set(found.scores) == set(roles.ROLES)
    for role, n in zip(roles.ROLES, (4, 4, 4, 40, 40), strict=True):
        assert found.scores[role].shape == (n, 3, 4)
    table = found.to_pandas("mover", limit=3)
    assert list(table["score"]) == sorted(table["score"], reverse=True) and (table["low"] <= table["score"]).all()
    # By hand: the first prompt's mover score in one head.
    p = tasks.ioi(LM, 40)[0]
    with LM.session() as s, torch.no_grad():
        s.capture("pattern", 1)
        row = s.run(tasks.batch_of([p]), read=None)["pattern", 1][0, 2, -1]
    assert found.scores["mover"][0, 1, 2] == pytest.approx(
        float(row[p.first[p.target]] - row[p.first[1 - p.target]]), abs=1e-5
    )
    assert found.scores["inhibition"][0, 1, 2] == pytest.approx(float(row[p.second[1 - p.target]]), abs=1e-5)
    assert found.headline.startswith("Heads from 0.01 on: previous")
    assert found.plot().data[0].z.shape == (3, 4)


def test_intervals_widen_where_templates_differ() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 25)
    alike = rng.normal(1, 1, 200)
    apart = alike + rng.normal(0, 2, 8)[groups]
    plain, one, two = clustered(alike, np.arange(200)), clustered(alike, groups), clustered(apart, groups)
    assert one.low < 1 < one.high and plain.high - plain.low == pytest.approx(4 / 200**0.5, rel=0.15)
    assert two.high - two.low > 3 * (one.high - one.low)
    assert sign_flips(alike) < 1e-3 and sign_flips(alike - alike.mean()) > 0.9 and sign_flips(np.zeros(5)) == 1
