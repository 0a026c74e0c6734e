"""Studies: what a file comes to, what is refused, that no finished run is done again, and that kills change nothing."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import yaml
from cli_fixtures import ROWS, Cli

import editlab.studies.work as work
from editlab.errors import ConfigError, ResumeRefused, RunBusy
from editlab.evaluation import metrics
from editlab.evaluation.results import Evaluation
from editlab.evaluation.statistics import estimate_joint, estimate_nested, estimate_nested_joint
from editlab.runs.journal import Journal, alone
from editlab.studies import results
from editlab.studies.plan import StudyPlan, read_study
from editlab.studies.run import read_result, run_study
from editlab.studies.work import Task, carry_out

QUICK_SUITE = {"metrics": ["efficacy_argmax", "perplexity", "norm_ratio"], "passages": 2}


class Cut(BaseException):
    """Ends a study from inside, as a kill does."""


@pytest.fixture(scope="module")
def study(
    model: Callable[..., Path], quick: list[str], shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StudyPlan]:
    """Three points, two seeds, in well under a second a run."""
    file = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    settings = {k: yaml.safe_load(v) for k, _, v in (pair.partition("=") for pair in quick)}
    methods = [
        {"method": "rome", "settings": settings},
        {"method": "ft", "settings": {"layer": 1}, "grid": {"steps": [2, 3]}},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITLAB_CACHE", str(shared_cache))
        yield StudyPlan(
            models=str(model()), methods=methods, facts=str(file), known=False, n=2, mode="sequential", seeds=2,
            evaluate=QUICK_SUITE, launch={"threads": 1},
        )  # fmt: skip


@pytest.fixture(scope="module")
def whole(study: StudyPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, carried out without a break."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    run_study(study, folder)
    return folder


def small(study: StudyPlan, **changes: Any) -> StudyPlan:
    """One method, one seed."""
    return study.model_copy(update={"methods": study.methods[:1], "seeds": (0,)} | changes)


def same(a: Path, b: Path) -> None:
    """Two folders of a study have the same tables and the same edits, to the last bit."""
    for name in ("runs.csv", "points.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    long = [pd.read_parquet(folder / "results.parquet") for folder in (a, b)]
    pd.testing.assert_frame_equal(*long)
    packs = [sorted(p.relative_to(folder) for p in folder.glob("runs/*/edits.safetensors")) for folder in (a, b)]
    assert packs[0] == packs[1] and packs[0]
    assert all((a / p).read_bytes() == (b / p).read_bytes() for p in packs[0])


# -- what a file comes to ----------------------------------------------------------------------------------


def test_everything_is_crossed_once() -> None:
    plan = StudyPlan(
        models=["a", "b"], methods=["rome", {"method": "memit", "grid": {"lambda_rel": [0.3, 1.0]}}],
        facts=["capital", "language"], n=[3, 4], mode=["sequential", "sequential-batched"], batch_size=[2, 5], seeds=3,
    )  # fmt: skip
    runs = plan.runs
    # The batch size matters in one of the two modes only.
    assert len(runs) == 2 * 3 * 2 * 2 * 3 * 3
    assert len({run.name for run in runs}) == len(runs)
    assert [run.model for run in runs] == sorted(run.model for run in runs)
    assert {run.plan.settings["seed"] for run in runs} == {0, 1, 2}
    assert {run.point for run in runs} == {"", "lambda_rel=0.3", "lambda_rel=1.0"}
    assert StudyPlan.model_validate(plan.model_dump(mode="json")).runs == runs


def test_a_method_may_have_its_own_mode() -> None:
    plan = StudyPlan(models="a", methods=["rome", {"method": "memit", "mode": "batch"}], n=[2, 4])
    assert {(r.plan.method, r.plan.mode, r.keys["batch_size"]) for r in plan.runs} == {
        ("rome", "single", 1), ("memit", "batch", 2), ("memit", "batch", 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modles": ["a"]}, "there is no setting 'modles'. Did you mean 'models'"),
        ({"models": []}, "'models' = \\[\\]: Tuple should have at least 1 item"),
        ({"methods": ["rom"]}, "There is no method 'rom'. Did you mean 'rome'"),
        ({"methods": [{"method": "ft", "settings": {"stepz": 3}}]}, "methods.0 .'ft'.: there is no setting 'stepz'"),
        ({"methods": [{"method": "rome", "grid": {"steps": [3, -1]}}]}, "methods.0 .'rome'.: 'steps' = -1"),
        ({"facts": "capitol"}, "'facts' = 'capitol' is neither a file nor a relation. Did you mean 'capital'"),
        ({"n": 0}, "'n' = .*: must be 1 or more"),
        ({"mode": "singel"}, "'mode.0' = 'singel'"),
        ({"evaluate": {"metrics": ["eficacy"]}}, "There is no metric 'eficacy'"),
        ({"evaluate": {"along": True}}, "cannot be used in a study"),
        ({"seeds": [1, 1]}, "'seeds' has an entry twice"),
        ({"seeds": True}, "'seeds'"),
        (
            {"methods": ["ft", {"method": "ft", "settings": {"steps": 3}}]},
            "two entries that tables both call 'ft', with different settings. Give each a 'label'",
        ),
        (
            {"methods": [{"method": "rome", "label": "x"}, {"method": "ft", "label": "x"}]},
            "two entries that tables both call 'x'",
        ),
        ({"facts": ["a/facts.jsonl", "b/facts.jsonl"]}, "tables both call 'facts'. Rename one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "facts.jsonl").touch()
    file.write_text(yaml.safe_dump({"models": ["a"], "methods": ["rome"]} | change))
    with pytest.raises(ConfigError, match=said) as error:
        read_study(file)
    assert error.value.exit_code == 2


def test_a_method_may_stand_twice_where_tables_tell_its_runs_apart(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    apart = [{"method": "ft", "mode": "batch"}, {"method": "ft"}, {"method": "ft", "label": "B", "settings": {"lr": 1}}]
    file.write_text(yaml.safe_dump({"models": "a", "methods": apart}))
    assert len(read_study(file).runs) == 3


def test_paths_are_relative_to_the_file(tmp_path: Path, facts: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "study.yaml").write_text("models: a\nmethods: ft\nfacts: ../facts.jsonl")
    (source,) = read_study(tmp_path / "deep" / "study.yaml").facts
    assert Path(source).samefile(facts) and Path(source).is_absolute()


# -- carrying out ------------------------------------------------------------------------------------------


def test_a_study_that_was_cut_ends_as_the_unbroken_one(
    study: StudyPlan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, done = work.evaluate, []

    def counted(*args: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) in (2, 4):  # edits are made, their evaluation is not
            raise Cut
        return evaluate(*args, **options)

    monkeypatch.setattr(work, "evaluate", counted)
    for _ in range(2):
        with pytest.raises(Cut):
            run_study(study, tmp_path / "cut")
    so_far = read_result(tmp_path / "cut")
    assert len(so_far.to_pandas()) == 2 and "2 of 6 runs" in so_far.headline
    run_study(study, tmp_path / "cut")
    assert len(done) == 6 + 2  # nothing but the two that were cut was done twice
    same(whole, tmp_path / "cut")
    run_study(study, tmp_path / "cut")
    assert len(done) == 8
    ends = [e["run"] for e in Journal(tmp_path / "cut").events if e["event"] == "ended"]
    assert len(ends) == len(set(ends)) == 6


def test_seeds_draw_facts_and_methods_share_them(study: StudyPlan, whole: Path) -> None:
    facts = {r.name: [f["id"] for f in Journal(whole / "runs" / r.name).events[0]["facts"]] for r in study.runs}
    by_seed = {seed: {tuple(facts[r.name]) for r in study.runs if r.seed == seed} for seed in (0, 1)}
    assert all(len(drawn) == 1 for drawn in by_seed.values()) and by_seed[0] != by_seed[1]


def test_seeds_are_pooled_by_item(whole: Path) -> None:
    found = read_result(whole)
    runs, points = found.to_pandas(), found.to_pandas(seeds=False)
    assert len(runs) == 6 and len(points) == 3
    for point in points.to_dict("records"):
        of = runs[(runs["method"] == point["method"]) & (runs["settings"] == point["settings"])]
        assert point["seeds"] == len(of) == 2 and point["efficacy_argmax_n"] == of["efficacy_argmax_n"].sum() == 4
        assert point["efficacy_argmax"] == pytest.approx(of["efficacy_argmax"].mean())
        assert point["perplexity_low"] <= point["perplexity"] <= point["perplexity_high"]


def test_figures_and_the_page_stand_alone(study: StudyPlan, whole: Path) -> None:
    figure = read_result(whole).plot()
    assert {trace.name for trace in figure.data if trace.name} == set(study.models)
    points = [trace for trace in figure.data if trace.name and trace.error_x.array is not None]
    assert len(points) == 3 and all(len(trace.x) == 3 for trace in points)  # a panel a metric, a point a method
    page = (whole / "report.html").read_text()
    around = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert "http" not in re.sub(r"arXiv|https?://arxiv", "", around) and "src=" not in around and len(around) < 30_000
    assert all(text in page for text in ("Every run", "steps=2", "efficacy_argmax"))


def test_a_run_that_fails_fails_alone_and_is_tried_again(study: StudyPlan, tmp_path: Path) -> None:
    plan = small(study, n=(2, 9))
    for _ in range(2):
        found = run_study(plan, tmp_path / "study")
        (reason,) = found.failed.values()
        assert "has 3 facts, 9 are wanted" in reason and len(found.to_pandas()) == 1
    assert Journal(tmp_path / "study").last("finished") is None
    assert json.loads((tmp_path / "study" / "manifest.json").read_text())["state"] == "stopped"


def test_a_bug_in_one_run_does_not_end_the_study(
    study: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "evaluate", lambda *args, **options: 1 / 0)
    (reason,) = run_study(small(study), tmp_path / "study").failed.values()
    assert "ZeroDivisionError" in reason
    assert "ZeroDivisionError" in next((tmp_path / "study" / "logs").iterdir()).read_text()


def test_it_does_not_go_on_on_another_ground(study: StudyPlan, tmp_path: Path, facts: Path) -> None:
    plan = small(study, facts=(str(facts),))
    run_study(plan, tmp_path / "study")
    with pytest.raises(ResumeRefused, match="plan"):
        run_study(plan.model_copy(update={"n": (1,)}), tmp_path / "study")
    facts.write_text(json.dumps(ROWS[0]))
    with pytest.raises(ResumeRefused, match=r"facts\.jsonl"):
        run_study(plan, tmp_path / "study")
    with alone(tmp_path / "study"), pytest.raises(RunBusy):
        run_study(plan, tmp_path / "study")


def test_files_of_one_name_are_all_looked_at(study: StudyPlan, tmp_path: Path) -> None:
    files = [tmp_path / folder / "facts.jsonl" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("\n".join(json.dumps(row) for row in ROWS))
    plan = small(study, facts=tuple(map(str, files)), n=(1,))
    run_study(plan, tmp_path / "study")
    files[0].write_text(json.dumps(ROWS[0]))
    with pytest.raises(ResumeRefused, match="a/facts"):
        run_study(plan, tmp_path / "study")


def test_one_model_is_kept_and_no_facts_keep_another(
    study: StudyPlan, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_model", {})  # other tests have left one
    asked = []
    pool = work._pool
    monkeypatch.setattr(work, "_pool", lambda *args: asked.append(args[1:]) or pool(*args))
    a, b = (small(study, models=(str(model(kind)),)).runs[0] for kind in ("llama", "gpt2"))
    for _ in range(2):
        facts = work.facts_of(work.model_of(a), a)
    assert len(asked) == 1 and len(facts) == 2
    old = weakref.ref(work.model_of(a))
    work.facts_of(work.model_of(b), b)
    gc.collect()
    assert old() is None


def test_a_run_that_another_worker_holds_is_waited_for(
    study: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study.runs[0]
    folder = tmp_path / "runs" / spec.name
    folder.mkdir(parents=True)
    lock = alone(folder)
    lock.__enter__()
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        lock.__exit__(None, None, None)

    monkeypatch.setattr(work.time, "sleep", sleep)
    assert carry_out(Task(spec, folder, 1)).failed == "" and len(waits) == 1


def test_on_the_command_line(cli: Cli, study: StudyPlan, whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(small(study).model_dump(mode="json", exclude_defaults=True)))
    dry = cli("study", "run", file, "--dry-run", "--out", tmp_path / "s", "--json")
    (row,) = dry.data["runs"]
    assert row["seconds"] > 0 and row["problem"] is None and not (tmp_path / "s").exists()
    ended = cli("study", "run", file, "--out", tmp_path / "s", "--threads", 1)
    assert ended.code == 0 and "1 of 1 runs" in ended.out and "report.html" in ended.out
    assert cli("study", "run", file, "--out", tmp_path / "s").code == 2
    assert cli("study", "run", file, "--launcher", "cloud").code == 2
    shown = cli("study", "show", whole, "--json")
    assert len(shown.data["runs"]) == 6 and len(shown.data["points"]) == 3
    again = cli("resume", whole, "--json")
    assert again.code == 0 and again.data["points"] == shown.data["points"]
    assert cli("study", "show", tmp_path).code == 2


# -- intervals ---------------------------------------------------------------------------------------------


def test_one_column_nested_is_the_nested_mean() -> None:
    groups = [[0.1, 0.7, 0.3], [0.9, 0.4], [0.2, 0.2, 0.8, 0.5]]
    assert estimate_nested_joint([[g] for g in groups], lambda a: a, seed=3) == estimate_nested(groups, seed=3)
    columns = [[0.1, 0.7, 0.3], [0.5, float("nan"), 1.0]]
    assert estimate_nested_joint([columns], lambda a, b: a * b) == estimate_joint(columns, lambda a, b: a * b)


def test_spread_between_groups_widens_a_nested_joint_interval() -> None:
    alike = [[[0.4, 0.6] * 10, [0.4, 0.6] * 10]] * 3
    apart = [[[level, level + 0.02] * 10, [level] * 20] for level in (0.1, 0.5, 0.9)]
    a, b = (estimate_nested_joint(groups, lambda x, y: x * y) for groups in (alike, apart))
    assert b.high - b.low > 3 * (a.high - a.low) and a.n == b.n == 60


def test_shares_over_few_seeds_stay_shares_and_other_numbers_are_free() -> None:
    def seed(values: dict[str, list[float]]) -> Evaluation:
        rows = [
            {"metric": name, "item": i, "state": "edited", "value": value}
            for name, column in values.items()
            for i, value in enumerate(column)
        ]
        return cast(Evaluation, SimpleNamespace(items=pd.DataFrame(rows)))

    low, high = [0.1, 0.2, 0.15], [0.9, 0.8, 0.85]
    names = ("efficacy", "paraphrase", "neighbourhood", "efficacy_magnitude")
    seeds = [seed(dict.fromkeys(names, column)) for column in (low, high)]
    for name in ("efficacy", "score"):
        e = results.pooled(name, "edited", seeds)
        assert (e.low, e.high) == (0.0, 1.0)  # two seeds that differ say nothing about others
    free = results.pooled("efficacy_magnitude", "edited", seeds)
    assert free.low < 0 and free.high > 1
    shares = {name for name, metric in metrics.all_metrics().items() if metric.card.is_share}
    assert shares >= {"efficacy", "zsre_efficacy", "fact_check"}
    assert not shares & {"perplexity", "fluency", "efficacy_magnitude", "control_kl"}
