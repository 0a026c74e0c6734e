"""Taught facts under further training: every engine starts where it should, and what is measured is what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_fixtures import ROWS, WORDS, Cli
from tiny_lm import make_lm

from editlab.data.formats import read_fact
from editlab.errors import ConfigError, EditFailed
from editlab.lm import LM
from editlab.probes.memory.taught import others_of, read_facts
from editlab.runs.journal import Journal
from editlab.runs.memory.lasting import SurviveResult
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.run import run_memory
from editlab.runs.memory.survive import (
    MATCHED,
    TRAIN,
    SurviveSettings,
    Teacher,
    kept_share,
    matched_to,
    survive_courses,
)
from editlab.runs.memory.verbs import VERBS

FACTS = [read_fact(row) for row in ROWS]


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama")


@pytest.fixture
def settings(facts: Path) -> SurviveSettings:
    return SurviveSettings(
        engines=(TRAIN, MATCHED, "ft"),
        methods={"ft": {"norm_constraint": 0.5, "lr": 0.05}},
        file=str(facts),
        items=3,
        seeds=2,
        exposures=4,
        lr=3e-3,
        times=(1, 2, 4),
        block=32,
    )


def test_a_reading_agrees_with_what_the_model_says(lm: LM) -> None:
    others = others_of(FACTS)
    assert others[0][0] == "Oslo" and all(f.target_new not in rest for f, rest in zip(FACTS, others, strict=True))
    for fact, reading in zip(FACTS, read_facts(lm, FACTS, others), strict=True):
        said = lm.generate(fact.text, len(lm.tokens(" " + fact.target_new, special=False)[0]))[0]
        assert reading.exact == (said == " " + fact.target_new)
        assert reading.lp < 0 and 0 <= reading.recognised <= 1
        assert np.isnan(reading.neighbours) == (not any(q.answers for q in fact.neighbours))
    learner = Learner(lm)
    for _ in range(60):
        learner.step([tuple(lm.tokens(f"{f.text} {f.target_new}")[0]) for f in FACTS], 1e-2)
    assert all(r.exact and r.recognised == 1 for r in read_facts(learner.lm, FACTS, others))


def test_matched_training_starts_where_the_edits_do(lm: LM, settings: SurviveSettings) -> None:
    teacher = Teacher(lm, FACTS, settings)
    edited, trained = teacher.gain(teacher.taught("ft")), teacher.gain(teacher.taught(matched_to("ft")))
    assert edited > 0.1 and trained == pytest.approx(edited, rel=0.1)
    assert teacher.gain(lm) == pytest.approx(0, abs=1e-5)  # (read in other batches)
    assert lm.state_hash == lm.base_hash


def test_every_edit_has_a_training_of_its_own_strength(lm: LM, settings: SurviveSettings) -> None:
    weak = {"ft": {"norm_constraint": 0.5, "lr": 0.05}, "lora": {"steps": 3, "lr": 0.02}}
    both = settings.model_copy(update={"engines": (MATCHED, "ft", "lora"), "methods": weak})
    teacher = Teacher(lm, FACTS, both)
    assert teacher.engines == [matched_to("ft"), matched_to("lora"), "ft", "lora"]
    gains = {engine: teacher.gain(teacher.taught(engine)) for engine in teacher.engines}
    # Far apart, so that one training cannot match both.
    assert gains["ft"] > 1.3 * gains["lora"] > 0.1
    for engine in ("ft", "lora"):
        assert gains[matched_to(engine)] == pytest.approx(gains[engine], rel=0.1)


def rows_of(gains: dict[str, float]) -> pd.DataFrame:
    """Rows of four facts and two times, of engines that gained so much and forget all."""
    return pd.DataFrame(
        {"engine": engine, "seed": 0, "t": t, "item": i, "fact": "f", "lp": -5 + gain, "base_lp": -5.0,
         "exact": int(not t), "base_exact": 0, "recognised": 1.0, "base_recognised": 0.5,
         "paraphrased": None, "base_paraphrased": None,
         "neighbours": None, "base_neighbours": None, "kept": 1.0, "routed": None, "control_loss": 3.0}
        for engine, gain in gains.items() for t in (0, 1) for i in range(4)
    )  # fmt: skip


def test_a_match_that_was_not_reached_is_said() -> None:
    settings = SurviveSettings(engines=(TRAIN, MATCHED, "ft", "rome"), seeds=1, times=(1,))
    found = SurviveResult(rows_of({TRAIN: 5, matched_to("ft"): 3.1, "ft": 3.0, "rome": 2.0}), settings, "m")
    assert (found.reference("ft"), found.reference("rome")) == (matched_to("ft"), TRAIN)
    (said,) = [remark for remark in found.remarks() if remark.startswith("Not matched within 10%")]
    assert "'rome' (no training reached it)" in said and "'ft'" not in said
    half = found.half_lives.set_index("engine")["against"]
    assert half["ft"] == matched_to("ft") and half["rome"] == TRAIN and half[TRAIN] == ""
    # A study of an older version: one training, matched to the mean of both.
    older = SurviveResult(rows_of({MATCHED: 2.5, "ft": 3.0, "rome": 2.0}), settings, "m")
    assert older.reference("ft") == older.reference("rome") == MATCHED
    (said,) = [remark for remark in older.remarks() if remark.startswith("Not matched within 10%")]
    assert "'ft' (3.00 nats against 2.50), 'rome' (2.00 nats against 2.50)" in said
    older.table(), older.headline, older.figures()


def test_streams_of_filler_are_no_further_facts() -> None:
    rows = rows_of({"ft": 3.0})
    rows.loc[rows["item"] > 1, "exact"] = 0
    many = pd.concat([rows.assign(seed=s) for s in range(8)])
    once, often = (
        SurviveResult(table, SurviveSettings(seeds=n), "m").value("ft", "recall") for n, table in ((1, rows), (8, many))
    )
    assert once.mean == often.mean == 0.5
    # As independent draws eight times over, the interval would be a third as wide.
    assert often.high - often.low > 0.8 * (once.high - once.low)


def test_the_share_of_a_change_that_is_left(lm: LM, settings: SurviveSettings) -> None:
    taught = Teacher(lm, FACTS, settings).taught("ft")
    learner = Learner(taught)
    assert kept_share(learner, lm) == pytest.approx(1, abs=1e-6)
    (name,) = [n for n, w in lm.model.named_parameters() if not torch.equal(w, taught.model.get_parameter(n))]
    with torch.no_grad():
        learner.weights[name].copy_(torch.lerp(lm.model.get_parameter(name), learner.weights[name], 0.25))
        next(w for n, w in learner.weights.items() if n != name).add_(1.0)  # elsewhere: does not count
    assert kept_share(learner, lm) == pytest.approx(0.25, abs=1e-4)
    assert kept_share(Learner(lm), lm) is None


def test_all_engines_see_the_same_stream_and_are_compared(lm: LM, settings: SurviveSettings, tmp_path: Path) -> None:
    courses = survive_courses(lm, settings)
    assert len({c.phases for c in courses}) == settings.seeds
    result: SurviveResult = run_memory(lm, VERBS["survive"], settings, tmp_path / "run")
    assert lm.state_hash == lm.base_hash
    assert len(result.rows) == 3 * 2 * 4 * 3
    assert result.engines == [TRAIN, matched_to("ft"), "ft"]
    for engine in result.engines:
        assert result.value(engine, "gain kept").mean == pytest.approx(1, abs=1e-6)
        assert result.value(engine, "weight change kept").mean == pytest.approx(1, abs=1e-6)
        assert result.value(engine, "weight change kept", 4).mean != 1
    assert result.gains[matched_to("ft")] == pytest.approx(result.gains["ft"], rel=0.1)
    assert set(result.half_lives["engine"]) == set(result.engines)
    assert "Half-life" in result.headline
    assert set(result.figures()) == {"survival", "lifetimes"} and "change kept" in result.table()
    assert len(result.log_rank) == 3 and (result.log_rank["p_holm"].dropna() <= 1).all()
    for found in result.lifetimes.values():
        assert set(found["recall"].unit) <= {0, 1, 2}  # facts, whatever the stream
    lives = result.lifetimes["ft"]["recall"]
    alive = result.rows[(result.rows["engine"] == "ft") & (result.rows["t"] == 4)]
    # Alive at the last probe is at most recalled there: a fact may be missed and come back.
    assert lives.alive[:, -1].sum() <= alive["exact"].sum()
    # Probes at t = 0 are the taught model's own, whatever the filler.
    start = result.rows[result.rows["t"] == 0].pivot(index=["engine", "item"], columns="seed", values="lp")
    assert (start[0] == start[1]).all()


def test_a_side_memory_stays_in_force_and_untrained(lm: LM, settings: SurviveSettings, tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice(WORDS, (200, 12))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(line) for line in words))
    twin = lm.fork()
    twin.edit(FACTS, "grace")
    learner = Learner(twin)
    records = [[r.to_record() for r in read_facts(x, FACTS, others_of(FACTS))] for x in (learner.lm, twin, lm)]
    assert records[0] == records[1] != records[2]
    learner.step([(5, 6, 7, 8, 9)], 1e-4)
    assert learner.lm.routes.digest == twin.routes.digest
    result = run_memory(twin, VERBS["survive"], settings.model_copy(update={"seeds": 1}), tmp_path / "run")
    assert result.engines == ["loaded edits", TRAIN, matched_to("loaded edits")]
    assert result.value("loaded edits", "prompts routed").mean == 1
    assert result.value("loaded edits", "weight change kept").n == 0
    assert "Half-life of the edit" in result.headline


def test_a_stopped_run_is_gone_on_with(lm: LM, settings: SurviveSettings, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step) -> None:
        if step.task == "training" and step.done == 10:
            raise Stop

    run_memory(lm, VERBS["survive"], settings, tmp_path / "whole")
    with pytest.raises(Stop):
        run_memory(lm, VERBS["survive"], settings, tmp_path / "broken", stop)
    run_memory(lm, VERBS["survive"], settings, tmp_path / "broken")
    whole, broken = (
        [{k: v for k, v in e.items() if k != "seconds"} for e in Journal(tmp_path / name).events]
        for name in ("whole", "broken")
    )
    assert whole == broken


def test_engines_are_checked(lm: LM, settings: SurviveSettings) -> None:
    with pytest.raises(ConfigError, match="no method 'rom'"):
        survive_courses(lm, settings.model_copy(update={"engines": ("rom",)}))
    with pytest.raises(ConfigError, match="needs edits"):
        survive_courses(lm, settings.model_copy(update={"engines": ("loaded edits",)}))
    with pytest.raises(ConfigError, match="no edit to match"):
        survive_courses(lm, settings.model_copy(update={"engines": (MATCHED,)}))


def test_an_engine_that_cannot_teach_ends_alone_and_says_why(
    lm: LM, settings: SurviveSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise EditFailed("It cannot be done.", "Try another.")

    monkeypatch.setattr(LM, "edit", refuse)
    found = run_memory(lm, VERBS["survive"], settings.model_copy(update={"engines": (TRAIN, "ft")}), tmp_path / "a")
    assert found.engines == [TRAIN] and len(found.aborted) == settings.seeds
    assert any("ft" in remark and "It cannot be done." in remark for remark in found.remarks())
    found.table(), found.headline, found.figures()
    with pytest.raises(EditFailed, match="nothing to report"):
        run_memory(lm, VERBS["survive"], settings.model_copy(update={"engines": (MATCHED, "ft")}), tmp_path / "b")


def test_the_command_asks_how_long_an_edit_lasts(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path], tmp_path: Path
) -> None:
    small = ["--set", "seeds=1", "--set", "block=32", "--updates", "2", "-m", model(), "--json", "-q"]
    ended = cli("memory", "survive", run_of(), *small, "--out", tmp_path / "lasts")
    assert ended.code == 0, ended
    assert "Half-life of the edit" in ended.data["headline"]
    assert {r["engine"] for r in ended.data["rows"]} == {"loaded edits"}
    refused = cli("memory", "survive", run_of(name="b"), "--file", "x.jsonl", "-m", model(), "-q")
    assert refused.code == 2 and "brings its own facts" in refused.err
