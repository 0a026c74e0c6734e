"""Acquisition: the definitions on planted curves, the schedule, and a learner that acquires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_lm import make_lm

from editlab.data.stimuli import invented_passages
from editlab.errors import ConfigError, EditFailed
from editlab.evaluation.statistics import estimate
from editlab.probes.memory.acquisition import DEPTHS, acquired, gain_floor
from editlab.runs.memory.acquire import SCENARIOS, AcquireSettings, _asked, acquire_courses, passages_for
from editlab.runs.memory.acquired import AcquireResult
from editlab.runs.memory.learner import Diverged, Learner
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.study import ids_of
from editlab.runs.memory.verbs import VERBS

T = list(range(0, 61))
SMALL = AcquireSettings(
    passages=1, injections=2, interval=3, after=6, window=3, seeds=1, lr=3e-3, block=160, filler_batch=2
)


def planted(jumps: list[float], peak: int = 2) -> np.ndarray:
    """Probes that jump at 0, 20 and 40, are best `peak` updates later, and lose a tenth of the jump per decade."""
    out = np.zeros((len(T), len(jumps)))
    for q, jump in enumerate(jumps):
        for start in (0, 20, 40):
            for t in T:
                if t > start:
                    s = t - start - peak
                    out[t, q] += jump * (1 if s < 1 else 1 - 0.1 * np.log10(s)) * (0.5 if s < 0 else 1)
    return out


def test_definitions_on_a_planted_curve() -> None:
    lp = planted([1.0, 2.0, 0.001])
    found = acquired(T, lp, (0, 20, 40), window=20, after=(0, 1, 2, 5, 10, 18, 99))
    assert found.effectivity[0] == pytest.approx([1.0, 2.0, 0.001])
    assert not found.censored.any()
    assert found.kept.tolist() == [True, True, False]
    assert found.times.tolist() == [0, 1, 2, 5, 10, 18]
    assert found.retainability[0] == 1
    a, tau = found.decay()
    # Of three jumps in all, the last two of which are younger: the slope is what their decays add up to.
    by_hand = found.gain[0] / found.gain[0, 0]
    assert found.retainability == pytest.approx(by_hand)
    assert a == pytest.approx(-np.polyfit(np.log10([1, 2, 5, 10, 18]), by_hand[1:], 1)[0]) and a > 0
    assert tau > 60


def test_one_jump_gives_its_planted_decay() -> None:
    lp = planted([1.0])[:20]
    found = acquired(T[:20], lp, (0,), window=5, after=(0, 1, 2, 5, 10))
    a, tau = found.decay()
    assert a == pytest.approx(0.1, abs=1e-6) and tau == pytest.approx(1e10, rel=1e-3)


def test_without_momentum_the_maximum_is_the_next_update() -> None:
    lp = planted([1.0], peak=1)
    found = acquired(T, lp, (0, 20, 40), window=1, after=(0, 1))
    assert found.effectivity[:, 0] == pytest.approx(lp[[1, 21, 41], 0] - lp[[0, 20, 40], 0])


def test_what_never_moves_has_no_retainability_and_no_infinity() -> None:
    found = acquired(T, np.zeros((len(T), 3)), (0, 20, 40), window=20, after=(0, 1, 2, 5))
    assert (found.effectivity == 0).all() and not found.kept.any()
    assert np.isnan(found.retainability).all() and np.isnan(found.decay()[0])


def test_of_random_walks_next_to_none_passes_the_floor_of_what_is_never_injected() -> None:
    rng = np.random.default_rng(0)
    walks, controls = (rng.normal(0, 0.03, (len(T), n)).cumsum(0) for n in (300, 60))
    window = {"injected": (0, 20, 40), "window": 20, "after": (0, 1, 2, 5)}
    by_itself = acquired(T, walks, **window)
    # The maximum of a walk over a window is no knowledge, and yet most of them are above 0.05 nat.
    assert by_itself.kept.mean() > 0.5 and by_itself.effectivity[0].mean() > 0.05
    floor = gain_floor(acquired(T, controls, **window).gain[:, 0])
    assert acquired(T, walks, floor=floor, **window).kept.mean() < 0.1
    # Jumps of a nat pass all the same.
    assert acquired(T, walks + planted([1.0] * 300), floor=floor, **window).kept.mean() > 0.95
    assert gain_floor(np.array([])) == 0.05 and gain_floor(np.array([0.1, 0.7, 0.2])) == 0.7


def walking(rise: float, passages: int = 4, probes: int = 5, seed: int = 0) -> AcquireResult:
    """Probes that walk at random, those of a passage together, and rise at each injection if they are injected."""
    settings = AcquireSettings(passages=passages, controls=passages, injections=3, interval=20, after=20, seeds=1)
    rng = np.random.default_rng(seed)
    times, rows = settings.probes, []
    for scenario in (*SCENARIOS, "never"):
        for p in range(passages):
            shared = rng.normal(0, 0.05, len(times)).cumsum()
            for depth in DEPTHS:
                for q in range(probes):
                    lp = shared + rng.normal(0, 0.02, len(times)).cumsum()
                    once = settings.injected[:1] if scenario == "once" else settings.injected
                    steps = sum(np.array(times) > i for i in once) * rise * (scenario != "never")
                    rows += [
                        {"seed": 0, "t": t, "scenario": scenario, "passage": f"{scenario}{p}", "depth": depth,
                         "probe": q, "verbatim": 0, "wordings": 2, "lp": x, "lp_sum": x, "exact": 0}
                        for t, x in zip(times, lp + steps, strict=True)
                    ]  # fmt: skip
    return AcquireResult(pd.DataFrame(rows), settings, "m")


def test_effectivity_stands_beside_its_floor_and_passages_are_the_unit() -> None:
    nothing, something = walking(0.0).summary, walking(1.0).summary
    assert (nothing["effectivity"] > 0.03).all()  # by itself, noise looks like an effect
    assert ((nothing["above_low"] < 0) & (nothing["above_high"] > 0)).all()
    assert (something["above_low"] > 0.5).all() and something["above_floor"].between(0.7, 1.3).all()
    assert (nothing["left_out"] / nothing["n"]).mean() > 0.8 and (something["left_out"] == 0).all()
    assert (something["passages"] == 4).all()
    # Probes of a passage move together: as draws of their own they would give less than half of this interval.
    rows = walking(1.0).rows
    at = rows[(rows["scenario"] == "once") & (rows["depth"] == DEPTHS[0])].pivot(
        index=["passage", "probe"], columns="t", values="lp"
    )
    rise = (at[20] - at[0]).to_numpy()
    alone = estimate(rise.tolist())
    curve = walking(1.0).curve.query("scenario == 'once' and depth == @DEPTHS[0] and t == 20").iloc[0]
    assert curve["mean"] == pytest.approx(rise.mean())
    assert curve["high"] - curve["low"] > 2 * (alone.high - alone.low)
    result = walking(0.0)
    assert "above floor" in result.headline and "above the floor" in result.table()


def test_the_schedule_injects_what_each_scenario_says() -> None:
    lm = make_lm("llama")
    (course,) = acquire_courses(lm, SMALL)
    (phase,) = course.phases
    passages = invented_passages(4, 0)
    rows = [ids_of(lm, p.train_context, SMALL.block) for p in passages]
    assert [len(b) for b in phase.batches] == [5, 2, 2, 4, 2, 2, 2, 2, 2]
    assert all(rows[i] in phase.batches[0] for i in range(3))
    assert rows[1] in phase.batches[3] and rows[2] not in phase.batches[3]
    assert ids_of(lm, passages[0].paraphrases[0], SMALL.block) in phase.batches[3]
    assert not any(rows[3] in batch for batch in phase.batches)
    assert rows[3] in course.forbidden and not course.forbidden & set(rows[:3])
    assert ids_of(lm, f"{passages[0].gen_input[0]} {passages[0].gen_target[0]}", SMALL.block) in course.forbidden
    assert phase.opt_state == "carry" and course.probes == (0, 1, 2, 3, 4, 5, 6, 8, 9)


def test_a_learner_acquires_and_controls_do_not(tmp_path: Path) -> None:
    lm = make_lm("llama")
    result = run_memory(lm, VERBS["acquire"], SMALL, tmp_path / "run")
    assert lm.state_hash == lm.base_hash
    curve = result.curve.set_index(["scenario", "depth", "t"])["mean"]
    assert (curve.xs(0, level="t") == 0).all()
    end = curve.index.get_level_values("t").max()
    assert curve["duplication", "memorisation", end] > curve["never", "memorisation", end] + 0.1
    assert set(result.summary["depth"]) == set(DEPTHS)
    assert "injection" in result.headline and len(result.figures()) == 2


def test_a_seed_that_diverges_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, step, steps = make_lm("llama"), Learner.step, iter(range(10**6))

    def diverging(self: Learner, *args: Any) -> float:
        if next(steps) == 4:
            raise Diverged("The training loss is nan.")
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", diverging)
    result = run_memory(lm, VERBS["acquire"], SMALL.model_copy(update={"seeds": 2}), tmp_path / "run")
    assert set(result.rows["seed"]) == {1} and "loss is nan" in result.remarks()[0]
    assert np.isfinite(result.summary["effectivity"]).all() and result.figures()
    monkeypatch.setattr(Learner, "step", lambda *args: (_ for _ in ()).throw(Diverged("The training loss is nan.")))
    with pytest.raises(EditFailed, match="'seed 0' ended early"):
        run_memory(lm, VERBS["acquire"], SMALL, tmp_path / "none")


# A record of the published layout, in our words: a list of these is the file. No id and no paraphrases.
PUBLISHED = {
    "train_context": "The Lumen Bridge was opened in Torva by Ana Silk. It is built of red glass. "
    "Its keeper is Olo Venn.",
    "mem_input": ["The Lumen Bridge was opened in Torva by", "It is built of", "Its keeper is"],
    "mem_target": ["Ana Silk", "red glass", "Olo Venn"],
    "gen_input": ["In Torva the Lumen Bridge was inaugurated by", "The bridge consists of", "It is looked after by"],
    "gen_target": ["Ana Silk", "red glass", "Olo Venn"],
    "hard_gen_input": ["Olo Venn keeps a bridge that was opened by", "Ana Silk opened a bridge of", "The bridge is a"],
    "hard_gen_target": ["Ana Silk", "red glass", "crossing"],
}


def published(n: int) -> list[dict]:
    return [{**PUBLISHED, "train_context": f"{PUBLISHED['train_context']} This is record {i}."} for i in range(n)]


def test_the_published_layout_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "fictional_knowledge.json"
    path.write_text(json.dumps(published(4)))
    found = passages_for(SMALL.model_copy(update={"file": str(path)}), 0)
    assert [p.train_context for p in found] == [row["train_context"] for row in published(4)]
    assert found[0].hard_gen_target == ("Ana Silk", "red glass", "crossing") and found[0].paraphrases == ()
    assert len({p.id for p in found}) == 4
    lm = make_lm("llama")
    whole = SMALL.model_copy(update={"file": str(path), "block": 200})
    result = run_memory(lm, VERBS["acquire"], whole, tmp_path / "run")
    asked = result.rows[(result.rows["t"] == 0) & (result.rows["scenario"] == "once")]
    assert asked.groupby("depth")["probe"].count().to_dict() == dict.fromkeys(DEPTHS, 3)
    assert asked["verbatim"].sum() == 8
    remarks = " ".join(result.remarks())
    assert "6 of 9 compositional targets stand in their passage word for word; the others rose by" in remarks
    assert "without paraphrases" in remarks


def test_probes_of_what_was_cut_off_are_left_out(tmp_path: Path) -> None:
    lm = make_lm("llama")
    path = tmp_path / "passages.json"
    path.write_text(json.dumps(published(4)))
    cut = SMALL.model_copy(
        update={"file": str(path), "block": len("The Lumen Bridge was opened in Torva by Ana Silk.")}
    )  # bytes, or fewer
    passages = passages_for(cut, 0)
    assert {(p.depth, p.index) for p in _asked(lm, [("once", passages[0]), ("never", passages[1])], cut.block)} == {
        (depth, 0) for depth in DEPTHS
    }
    with pytest.raises(ConfigError, match="No memorisation probe asks about the first 16"):
        acquire_courses(lm, cut.model_copy(update={"block": 16}))


def test_passages_of_ones_own(tmp_path: Path) -> None:
    lm = make_lm("llama")
    made = [p.model_dump(mode="json", exclude={"id", "paraphrases"}) for p in invented_passages(4, 9)]
    path = tmp_path / "passages.json"
    path.write_text(json.dumps(made))
    (course,) = acquire_courses(lm, SMALL.model_copy(update={"file": str(path)}))
    row = ids_of(lm, made[0]["train_context"], SMALL.block)
    assert row in course.phases[0].batches[0] and row in course.phases[0].batches[3]
    with pytest.raises(ConfigError, match="has 4 fictional passages, 7 are needed"):
        acquire_courses(lm, SMALL.model_copy(update={"file": str(path), "passages": 2}))
