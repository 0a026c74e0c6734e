"""The harness: it restores every bit, repeats itself, goes on after a stop, and learns and forgets as it must."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_lm import make_lm, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from editlab.data.stimuli import Stimuli
from editlab.errors import ConfigError, ResumeRefused
from editlab.lm import LM
from editlab.probes.memory.reading import read
from editlab.probes.memory.recall import continuations, rouge_l, targets
from editlab.probes.memory.recognition import auc, d_prime, margin, prefers
from editlab.progress import StepInfo
from editlab.runs.journal import Journal
from editlab.runs.memory import course as courses_module
from editlab.runs.memory.calibrate import calibrate
from editlab.runs.memory.course import Course, Phase, run_courses
from editlab.runs.memory.curves import StudyResult
from editlab.runs.memory.estimate import cost
from editlab.runs.memory.learner import Diverged, Learner, memory_needed
from editlab.runs.memory.run import read_planned, run_memory
from editlab.runs.memory.settings import StudySettings, preset, spread
from editlab.runs.memory.study import Items, study_course, study_courses
from editlab.runs.memory.untouched import ModelTouched
from editlab.runs.memory.verbs import VERBS

# Letters differ from the first byte on, so texts may be cut short.
SMALL = StudySettings(kinds=("letters",), items=6, seeds=2, exposures=2, times=(1, 2, 3), lr=3e-3, block=16, batch=3)
ONE = SMALL.model_copy(update={"seeds": 1})
FACT = {"prompt": "{} is", "subject": "Anna", "target_new": "b"}


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama")


def study(lm: LM, settings: StudySettings, folder: Path, **options) -> StudyResult:
    return run_memory(lm, VERBS["retain"], settings, folder, **options)


def journal_of(folder: Path) -> list[dict]:
    return [{k: v for k, v in e.items() if k != "seconds"} for e in Journal(folder).events]


def logits(lm: LM) -> torch.Tensor:
    return lm.forward(lm.encode(["The river is", "Anna plays the", "a b c d e f"]))


# -- the copy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_training_reaches_no_other_model_and_restoring_is_exact(family: str) -> None:
    lm = make_lm(family, tie_word_embeddings=True)
    before, state = logits(lm), lm.state_hash
    learner = Learner(lm)
    assert learner.is_restored and torch.equal(logits(learner.lm), before)
    rows = [(5, 6, 7, 8, 9), (9, 8, 7, 6, 5, 4, 3)]
    losses = [learner.step(rows, 1e-2) for _ in range(5)]
    assert losses[-1] < losses[0] and learner.distance() > 0
    assert not learner.is_restored and not torch.equal(logits(learner.lm), before)
    assert torch.equal(logits(lm), before) and lm.state_hash == state
    assert not any(p.requires_grad for p in lm.model.parameters())
    learner.restore()
    assert learner.is_restored and learner.distance() == 0 and torch.equal(logits(learner.lm), before)
    assert [learner.step(rows, 1e-2) for _ in range(5)] == losses
    assert all(p.grad is None for p in learner.weights.values())


def test_it_starts_from_the_edited_model_and_the_edit_survives_it(lm: LM) -> None:
    twin = lm.fork()
    twin.edit(FACT, method="ft", steps=3, norm_constraint=0.5, lr=0.05)
    edited = logits(twin)
    learner = Learner(twin)
    assert torch.equal(logits(learner.lm), edited) and not torch.equal(edited, logits(lm))
    learner.step([(5, 6, 7, 8)], 1e-2)
    learner.restore(lm)
    assert torch.equal(logits(learner.lm), logits(lm))
    learner.restore(twin)
    assert torch.equal(logits(learner.lm), edited)


def test_a_step_is_adamw_on_the_token_mean(lm: LM) -> None:
    rows = [(5, 6, 7, 8, 9), (9, 8, 7)]
    learner = Learner(lm)
    loss = learner.backward(rows)
    model = lm.on_own_weights().model.double()
    model.requires_grad_(True)
    parts = [-model(torch.tensor([r])).logits[0].log_softmax(-1)[range(len(r) - 1), r[1:]] for r in rows]
    by_hand = torch.cat(parts).mean()
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), abs=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(learner.weights[name].grad.double(), weight.grad, atol=1e-5), name


def test_scope_leaves_the_rest_alone(lm: LM) -> None:
    learner = Learner(lm, scope="mlp")
    learner.step([(5, 6, 7, 8)], 1e-2)
    changed = {n for n, w in learner.weights.items() if not torch.equal(w, lm.model.get_parameter(n))}
    assert changed == set(learner.trained) and all("mlp" in n for n in changed) and len(changed) == 9


def test_half_precision_and_too_little_memory_are_refused(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    half = make_lm("llama")
    half = LM(half.on_own_weights().model.to(torch.bfloat16), half.tokenizer)
    with pytest.raises(ConfigError, match="float32 weights"):
        Learner(half)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 10})())
    with pytest.raises(ConfigError, match="GB are free"):
        Learner(lm)


def test_where_all_weights_are_too_many_the_mlps_may_be_few_enough(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    between = (memory_needed(lm, "mlp") + memory_needed(lm, "all")) // 2
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": between})())
    with pytest.raises(ConfigError, match="scope=mlp"):
        Learner(lm)
    Learner(lm, scope="mlp")


# -- a study ---------------------------------------------------------------------------------------------


def test_zero_exposures_are_exactly_chance_and_rows_are_whole(lm: LM, tmp_path: Path) -> None:
    before, state = logits(lm), lm.state_hash
    result = study(lm, SMALL.model_copy(update={"rouge": True}), tmp_path / "run")
    assert torch.equal(logits(lm), before) and lm.state_hash == state
    assert result.value("recognition", exposure=0).mean == 0.5
    assert result.value("recognition by gain", exposure=0).mean == 0.5
    states = 3 + len(SMALL.times)
    assert len(result.rows) == 2 * 6 * 2 * 2 * states
    assert not result.rows.duplicated(["course", "update", "item", "role"]).any()
    for row in result.rows.itertuples():
        assert not row.exact or row.prefix == 1.0 == row.hits
    recalled = result.rows[(result.rows["exact"] == 1) & result.rows["rouge2"].notna()]
    assert (recalled["rouge2"] == 1).all()
    whole = pd.read_parquet(tmp_path / "run" / "results.parquet")
    pd.testing.assert_frame_equal(whole, result.rows, check_dtype=False)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["kind"] == "memory" and manifest["headline"] == result.headline
    assert {p.stem for p in (tmp_path / "run" / "figures").iterdir()} == {"exposures", "items", "losses", "retention"}
    assert set(result.curve["n"]) == {24}
    assert "One seed" not in " ".join(result.remarks())


def test_all_measures_of_recognition_are_those_of_their_definitions(lm: LM, tmp_path: Path) -> None:
    result = study(lm, SMALL, tmp_path / "run")
    last = result.rows[(result.rows["exposure"] == SMALL.exposures) & (result.rows["t"].fillna(0) == 0)]
    runs = [
        [run.loc[run["role"] == role, "loss"].to_numpy() for role in ("studied", "foil")]
        for _, run in last.sort_values("item").groupby(["seed", "direction"])
    ]
    assert len(runs) == 4
    for name, definition in (("AUC", auc), ("margin", margin)):
        found = result.value(name)
        assert found.mean == pytest.approx(np.mean([definition(*run) for run in runs]))
        assert found.low <= found.mean <= found.high
    told = result.value("recognition")
    assert result.value("d'").mean == pytest.approx(d_prime(told.mean, told.n))
    assert result.value("d'", exposure=0).mean == 0  # as one half is recognised


def test_what_is_recalled_exactly_has_a_rouge_of_one_when_it_is_generated(lm: LM) -> None:
    settings = ONE.model_copy(update={"exposures": 20, "lr": 1e-2, "times": (), "counterbalance": False})
    (course,) = study_courses(lm, settings)
    learner = Learner(lm)
    for update in range(course.updates):
        course.step(learner, update)
    exact = [r for r in course.measure(learner, course.updates) if r["exact"]]
    assert exact and all(r["prefix"] == r["hits"] == 1 for r in exact)
    rows = [row for batch in course.phases[0].batches[:2] for row in batch]
    readings = read(learner.lm, rows)
    assert any(r.exact for r in readings)
    missed = [dataclasses.replace(r, hits=0) for r in readings]  # so that all are generated
    for r, said, wanted in zip(readings, continuations(learner.lm, rows, missed), targets(lm, rows), strict=True):
        if r.exact:
            assert said == wanted and rouge_l(said, wanted) == 1


def test_without_a_learning_rate_nothing_is_learnt(lm: LM, tmp_path: Path) -> None:
    """The smallest rate that a float32 weight cannot feel: every probe equals the first, bit for bit."""
    result = study(lm, ONE.model_copy(update={"lr": 1e-30}), tmp_path / "run")
    rows = result.rows
    assert (rows["loss"] == rows["base_loss"]).all()
    assert result.value("recognition", t=3).mean == 0.5


@pytest.fixture(scope="module")
def whole(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The journal of an unbroken run of `ONE`."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    study(lm, ONE, folder)
    return journal_of(folder)


def test_the_same_settings_give_the_same_journal_and_another_seed_another_one(
    lm: LM, whole: list[dict], tmp_path: Path
) -> None:
    study(lm, ONE, tmp_path / "b")
    study(lm, ONE.model_copy(update={"seed": 9}), tmp_path / "c")
    assert journal_of(tmp_path / "b") == whole != journal_of(tmp_path / "c")


def test_retention_begins_with_the_last_rows_of_the_study(lm: LM, whole: list[dict], tmp_path: Path) -> None:
    """With and without further training, what is read at the end of the study is the same, to the bit."""
    run_memory(lm, VERBS["recognize"], ONE.model_copy(update={"times": ()}), tmp_path / "run")
    ends = [
        {(e["course"], e["update"]): e["rows"] for e in events if e["event"] == "probed" and e["rows"][0]["t"] == 0}
        for events in (whole, journal_of(tmp_path / "run"))
    ]
    assert ends[0] == ends[1] and len(ends[0]) == 2


class Stop(Exception):
    """A kill of the tests."""


@pytest.mark.parametrize("mode", ["replay", "checkpoint"])
@pytest.mark.parametrize("point", [5, 12])
def test_a_run_that_is_gone_on_with_equals_an_unbroken_one(
    lm: LM, whole: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, point: int
) -> None:
    if mode == "checkpoint":
        monkeypatch.setattr(courses_module, "CHECKPOINT_EVERY", -1.0)

    def stop(step: StepInfo) -> None:
        if step.task == "training" and step.done == point:
            raise Stop

    with pytest.raises(Stop):
        study(lm, ONE, tmp_path / "broken", on_step=stop)
    assert (tmp_path / "broken" / courses_module.CHECKPOINT).exists() == (mode == "checkpoint")
    with (tmp_path / "broken" / "journal.jsonl").open("ab") as f:
        f.write(b'{"event": "probed", "cou')  # torn by the kill
    planned = read_planned(tmp_path / "broken", VERBS)
    assert planned is not None and planned.settings == ONE
    trained = []
    result = study(lm, planned.settings, tmp_path / "broken", on_step=lambda s: trained.append(s.done))
    assert journal_of(tmp_path / "broken") == whole
    assert result.headline and not (tmp_path / "broken" / courses_module.CHECKPOINT).exists()
    if mode == "checkpoint" and point == 5:
        assert min(trained) == 4  # it did not begin again


def test_weights_after_a_checkpoint_are_those_of_an_unbroken_run(lm: LM, tmp_path: Path) -> None:
    learner = Learner(lm)
    rows = [[(5, 6, 7, 8)], [(9, 8, 7)], [(4, 5, 4, 5)], [(7, 7, 7)]]
    for batch in rows:
        learner.step(batch, 1e-2)
    whole = {n: w.detach().clone() for n, w in learner.weights.items()}
    learner.restore()
    for batch in rows[:2]:
        learner.step(batch, 1e-2)
    learner.save(tmp_path / "c.safetensors", {"course": "x", "update": "2"})
    fresh = Learner(lm)
    fresh.load(tmp_path / "c.safetensors")
    for batch in rows[2:]:
        fresh.step(batch, 1e-2)
    assert all(torch.equal(w, whole[n]) for n, w in fresh.weights.items())


def test_what_a_run_rests_on_is_checked(lm: LM, tmp_path: Path) -> None:
    def stop(step: StepInfo) -> None:
        if step.done == 5:
            raise Stop

    settings = ONE
    with pytest.raises(Stop):
        study(lm, settings, tmp_path / "run", on_step=stop)
    with pytest.raises(ResumeRefused, match="settings"):
        study(lm, settings.model_copy(update={"eps": 1e-7}), tmp_path / "run")
    with pytest.raises(ResumeRefused, match="weights"):
        study(make_lm("llama", 5), settings, tmp_path / "run")
    study(lm, settings, tmp_path / "run")
    with pytest.raises(ConfigError, match="is finished"):
        study(lm, settings, tmp_path / "run")


def test_a_foil_in_a_batch_is_refused() -> None:
    with pytest.raises(AssertionError, match="would be trained on"):
        Course("x", (Phase((((1, 2),),), 1e-3),), (0,), lambda learner, update: [], forbidden=frozenset({(1, 2)}))


def test_a_course_that_diverges_ends_alone_and_says_so(lm: LM, tmp_path: Path) -> None:
    result = study(lm, ONE.model_copy(update={"lr": 1.0}), tmp_path / "run")
    assert result.aborted and "loss" in result.aborted[0][1]
    assert result.value("recognition", exposure=0).mean == 0.5
    learner = Learner(lm)
    with torch.no_grad():
        next(iter(learner.weights.values())).fill_(float("nan"))
    with pytest.raises(Diverged):
        learner.step([(5, 6, 7)], 1e-3)


def test_a_probe_without_finite_numbers_ends_its_course(lm: LM, tmp_path: Path) -> None:
    def measure(learner: Learner, update: int) -> list[dict]:
        return [{"loss": float("nan") if update == 1 else 1.0}]

    courses = [Course(name, (Phase((((5, 6),), ((6, 7),)), 1e-3),), (0, 1, 2), measure) for name in "ab"]
    rows = run_courses(lm, Learner(lm), courses, Journal(tmp_path))
    assert [(r["course"], r["update"]) for r in rows] == [("a", 0), ("b", 0)]
    ended = [e for e in Journal(tmp_path).events if e["event"] == "aborted"]
    assert [e["course"] for e in ended] == ["a", "b"] and "no finite numbers" in ended[0]["reason"]


def test_a_spoilt_course_ends_there_even_if_it_was_killed_before_it_could_say_so(lm: LM, tmp_path: Path) -> None:
    def measure(learner: Learner, update: int) -> list[dict]:
        return [{"loss": float(update)}]

    def spoilt(rows: list[dict]) -> str:
        return "others cost too much" if rows[0]["loss"] else ""

    course = Course("a", (Phase((((5, 6),), ((6, 7),)), 1e-3),), (0, 1, 2), measure, spoilt=spoilt)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        run_courses(lm, Learner(lm), [course], Journal(tmp_path / name))
    path = tmp_path / "cut" / "journal.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "aborted" not in line))
    rows = run_courses(lm, Learner(lm), [course], Journal(tmp_path / "cut"))
    assert [r["update"] for r in rows] == [0, 1]
    ends = [Journal(tmp_path / name).events[-1] for name in ("whole", "cut")]
    assert ends[0] == ends[1] and ends[1]["reason"] == "others cost too much"


def test_the_optimiser_is_reset_or_carried(lm: LM, tmp_path: Path) -> None:
    ends = {}
    for state in ("reset", "carry", "warmup"):
        result = study(lm, ONE.model_copy(update={"opt_state": state}), tmp_path / state)
        ends[state] = (result.value("loss of studied").mean, result.value("loss of studied", t=1).mean)
    assert ends["reset"][0] == ends["carry"][0] == ends["warmup"][0]
    assert len({after for _, after in ends.values()}) == 3


def test_the_cost_is_said_before_and_calibration_finds_the_smallest_rate(lm: LM) -> None:
    found = cost(lm, SMALL, study_courses(lm, SMALL), 12)
    assert found.updates == 2 * 2 * (2 * 2 + 3) and found.seconds > 0 and "GB of memory" in found.text
    settings = StudySettings(kinds=("letters",), items=4, exposures=30, block=16)
    chosen = calibrate(lm, settings, (1e-6, 3e-3, 1e-2), aim=0.9)
    assert chosen.chosen == 3e-3 and list(chosen.table["lr"]) == [1e-6, 3e-3], chosen.table
    none = calibrate(lm, settings, (1e-7,), aim=0.9)
    assert none.chosen is None and "No rate" in none.headline


def test_settings_and_presets() -> None:
    for name in ("quick", "standard", "full", "paper"):
        assert StudySettings(**preset(name, retain=True)).times
        assert not StudySettings(**preset(name, retain=False)).times
    standard = StudySettings(**preset("standard", retain=True))
    assert 2 * standard.items * standard.seeds >= 64 and standard.seeds >= 3 and standard.counterbalance
    assert spread(10) == (1, 2, 3, 5, 8, 10) and spread(300)[-2:] == (200, 300) and spread(1) == (1,)
    for bad in ({"times": (3, 1)}, {"times": (0, 1)}, {"kinds": ("nothing",)}, {"items": 1}):
        with pytest.raises(ValueError):
            StudySettings(**bad)


# -- a planted learner -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1, 2])
def planted(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """A random model that studies 8 of 16 random sequences 20 times, then others: the values of memory.md were
    measured on this kind of model, and are bounds here."""
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), num_hidden_layers=2, tie_word_embeddings=True, **sizes
    )
    torch.manual_seed(request.param)
    lm = LM(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tokenizer)
    g = torch.Generator().manual_seed(request.param)
    ids = torch.randint(1, 250, (96, 12), generator=g).tolist()
    rows = [tuple(row) for row in ids]
    items = Items(Stimuli("planted", 0, ()), tuple(rows[:8]), tuple(rows[8:16]), 0)
    later = tuple(tuple(rows[i : i + 4]) for i in range(16, 96, 4))
    settings = StudySettings(items=8, exposures=20, times=(1, 2, 5, 10, 20), lr=1e-2)
    before: dict = {}
    # Random sequences have nothing in common with others, whose loss may rise as it likes.
    found = [
        dataclasses.replace(study_course(items, later, settings, request.param, d, before), spoilt=lambda rows: "")
        for d in ("a", "b")
    ]
    folder = tmp_path_factory.mktemp("planted")
    table = pd.DataFrame(run_courses(lm, Learner(lm), found, Journal(folder)))
    states = sorted(table["update"].unique())
    by = {
        role: table[table["role"] == role].pivot(index=["course", "item"], columns="update")
        for role in ("studied", "foil")
    }
    return {
        "recognition": np.array([prefers(by["studied"]["loss", u], by["foil"]["loss", u]).mean() for u in states]),
        "exact": np.array([by["studied"]["exact", u].mean() for u in states]),
        "hits": np.array([by["studied"]["hits", u].mean() for u in states]),
    }


def test_a_planted_learner_learns_as_it_must(planted: dict[str, np.ndarray]) -> None:
    recognition, exact, hits = planted["recognition"], planted["exact"], planted["hits"]
    assert recognition[0] == 0.5
    assert (recognition[1:21] == 1).all()
    assert exact[0] == 0 and exact[20] >= 0.9 and hits[20] >= 0.95
    assert np.diff(hits[:21]).min() > -0.06


def test_and_forgets_recall_before_recognition(planted: dict[str, np.ndarray]) -> None:
    exact, recognition = planted["exact"], planted["recognition"]
    end = 20  # states after it: 1, 2, 5, 10 and 20 updates later
    assert exact[end + 1] > exact[end + 4]
    assert exact[end + 3] <= 0.5 and exact[end + 4] <= 0.13
    # All of 16 in two of the three models, 14 in the third.
    assert recognition[end + 3] >= 0.85 and recognition[end + 3] > exact[end + 3] + 0.3


# -- the model itself ------------------------------------------------------------------------------------


def test_a_stopped_study_leaves_the_model_to_the_bit_and_says_if_it_did_not(lm: LM, tmp_path: Path) -> None:
    before = {name: w.clone() for name, w in lm.model.named_parameters()}

    def stop(step: StepInfo) -> None:
        if step.done == 3:
            raise Stop

    with pytest.raises(Stop):
        study(lm, ONE, tmp_path / "stopped", on_step=stop)
    assert all(torch.equal(w, before[name]) for name, w in lm.model.named_parameters())
    study(lm, ONE, tmp_path / "whole")
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["restored"] == journal_of(tmp_path / "whole")[-1]["restored"]

    mine = make_lm("llama", 3)
    weight = next(iter(mine.model.parameters()))

    def meddle(step: StepInfo) -> None:
        if step.done == 3:
            with torch.no_grad():
                weight[0, 0] += 1e-3  # behind the back of the view: its hash does not know

    with pytest.raises(ModelTouched, match="changed the model itself"):
        study(mine, ONE, tmp_path / "touched", on_step=meddle)
    assert not (tmp_path / "touched" / "manifest.json").exists()
