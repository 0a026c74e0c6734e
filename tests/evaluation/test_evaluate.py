"""Evaluations of edited models: what they score, in which state, and that they can be saved and compared."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_lm import make_lm

from editlab import LM, Fact
from editlab.data.controls import CONTROLS
from editlab.data.corpus import held_out
from editlab.errors import ConfigError, UnknownName
from editlab.evaluation import metrics
from editlab.evaluation.compare import compare
from editlab.evaluation.questions import asked
from editlab.evaluation.results import Evaluation
from editlab.evaluation.scorer import force, score, score_facts
from editlab.evaluation.sequence import retention, steps
from editlab.evaluation.suite import Suite, read_suite
from editlab.facts import Question
from editlab.state.edit import Delta, Edit

FACTS = [
    Fact(
        id=f"f{i}",
        prompt="The capital of {} is",
        subject=subject,
        target_new=new,
        target_true="Oslo",
        paraphrases=(f"{subject} has the capital",),
        neighbours=(Question(prompt="The capital of Erehwon is", answers=("Oslo",)),),
        portability=({"prompt": f"The mayor of {subject} is in", "answers": [new], "name": name},),
    )
    for i, (subject, new, name) in enumerate(
        [("Vinland", "Rome", "one"), ("Thule", "a king", "two"), ("Anna", "the sea", "one")]
    )
]
FEW = {"passages": 2, "max_new_tokens": 3}


def edit(lm: LM, fact: Fact, size: float = 0.5) -> str:
    """An edit with a random change, in the fact's name."""
    name = lm.adapter.down(lm.model, 1).name
    shape = lm.model.get_parameter(name).shape
    g = torch.Generator().manual_seed(len(fact.subject))
    delta = Delta(dense=size * torch.randn(shape, generator=g))
    return lm.ledger.apply(Edit("by-hand", {}, [fact.model_dump(mode="json")], {name: delta})).id


@pytest.fixture
def lm() -> LM:
    lm = make_lm("llama")
    for fact in FACTS:
        edit(lm, fact)
    return lm


def test_both_columns_are_the_models_they_say(lm: LM) -> None:
    found = lm.evaluate(metrics="efficacy_magnitude", **FEW)
    prompts = found.prompts.set_index("fact")
    for state, model in (("base", lm.pristine()), ("edited", lm)):
        for fact in FACTS:
            (f,) = force(model, [(fact.text, fact.target_new)])
            assert prompts.loc[fact.id, f"{state}_nll_new"] == pytest.approx(f.nll, abs=1e-5)
    assert found.settings["n_edited"] == found.settings["n_edits"] == 3
    assert found["EM"].base.mean != found["EM"].edited.mean


def test_without_an_edit_both_columns_are_equal() -> None:
    found = make_lm("gpt2").evaluate(FACTS, metrics="all", **FEW)
    assert found.settings["n_edited"] == 0
    for line in found.lines:
        assert line.base == line.edited, line.metric
    assert found["locality_acc"].edited.mean == found["neighbourhood_same"].edited.mean == 1
    assert found["control_kl"].edited.mean == 0


def test_a_no_op_edit_changes_no_number() -> None:
    lm = make_lm("llama")
    before = lm.evaluate(FACTS, **FEW)
    edit(lm, FACTS[0])
    lm.undo()
    after = lm.evaluate(FACTS, **FEW)
    assert [line.edited for line in before.lines] == [line.edited for line in after.lines]


def test_drift_is_what_plain_forward_passes_give(lm: LM) -> None:
    found = lm.evaluate(metrics="drift", **FEW)
    items = found.items.set_index(["metric", "state", "item"])["value"]
    base = lm.pristine()
    with torch.no_grad():
        for prompt in CONTROLS[:3]:
            ids = torch.tensor([lm.tokens(prompt)[0]])
            now, before = (m.model(ids).logits[0, -1].double().log_softmax(-1) for m in (lm, base))
            kl = float((before.exp() * (before - now)).sum())
            assert items["control_kl", "edited", prompt] == pytest.approx(kl, abs=1e-5) and kl > 0
            assert items["control_same", "edited", prompt] == float(before.argmax() == now.argmax())
        texts = [(i, t, lm.tokens(t, sink=True)[0]) for i, t in enumerate(held_out(Suite().prose))]
        texts = [(i, t, ids[:129]) for i, t, ids in texts if len(ids) > 64][: FEW["passages"]]
        for state, model in (("base", base), ("edited", lm)):
            each = []
            for i, text, ids in texts:
                logits = model.model(torch.tensor([ids])).logits[0, :-1].float()
                nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
                assert items["perplexity", state, f"{i}: {text[:40]}"] == pytest.approx(float(nll), abs=1e-4)
                each.append(float(nll))
            line = getattr(found["perplexity"], state)
            assert line.mean == pytest.approx(math.exp(sum(each) / len(each)), rel=1e-4) and line.n == 2
    (name,) = {name for entry in lm.ledger.active for name in entry.edit.deltas}
    ratio = lm.model.get_parameter(name).norm() / base.model.get_parameter(name).norm()
    assert items["norm_ratio", "edited", name] == pytest.approx(float(ratio), rel=1e-5)


def test_single_scores_each_fact_under_its_own_edit(lm: LM) -> None:
    ids = [e.id for e in lm.ledger]
    state = lm.state_hash
    found = lm.evaluate(mode="single", metrics=["efficacy_magnitude", "norm_ratio", "control_kl"], **FEW)
    assert lm.state_hash == state and [e.id for e in lm.ledger.active] == ids
    prompts = found.prompts.set_index("fact")
    for fact in FACTS:
        alone = make_lm("llama")
        edit(alone, fact)
        (f,) = force(alone, [(fact.text, fact.target_new)])
        assert prompts.loc[fact.id, "edited_nll_new"] == pytest.approx(f.nll, abs=1e-5)
    assert found["norm_ratio"].edited.n == found["control_kl"].edited.n == 3
    assert "under its own edit alone" in found.caption


def test_single_uses_edits_that_were_undone_as_well(lm: LM) -> None:
    for entry in lm.ledger.active:
        lm.undo(entry.id)
    with pytest.raises(ConfigError, match="no fact to measure"):
        lm.evaluate(**FEW)
    found = lm.evaluate(mode="single", metrics="efficacy", **FEW)
    assert found.settings["n_facts"] == 3
    assert lm.state_hash == lm.base_hash


def test_the_matrix_follows_the_sequence(lm: LM) -> None:
    found = lm.evaluate(FACTS[:2], metrics="efficacy", along=True, **FEW)
    matrix = found.matrix
    assert matrix is not None
    assert sorted(set(matrix.edits)) == [0, 1, 2, 3]
    assert matrix[matrix.fact == "f1"].written.unique().tolist() == [2]
    last = matrix[matrix.edits == 3].set_index("fact").nll_new
    first = matrix[matrix.edits == 0].set_index("fact").nll_new
    prompts = found.prompts.set_index("fact")
    assert matrix[matrix.edits == 3].set_index("fact").nll_true.to_dict() == pytest.approx(
        prompts.edited_nll_true.to_dict()
    )
    assert (matrix.success == (matrix.nll_new < matrix.nll_true)).all() and matrix.success.nunique() == 2
    assert last.to_dict() == pytest.approx(prompts.edited_nll_new.to_dict())
    assert first.to_dict() == pytest.approx(prompts.base_nll_new.to_dict())
    # In between: exactly the first two edits.
    between = make_lm("llama")
    for fact in FACTS[:2]:
        edit(between, fact)
    second = matrix[(matrix.edits == 2) & (matrix.fact == "f0")].nll_new.item()
    assert second == pytest.approx(force(between, [(FACTS[0].text, "Rome")])[0].nll, abs=1e-5)
    assert lm.ledger.active
    table = retention(matrix)
    assert list(table.columns[0].cells) == ["0", "1", "2", "3"]
    assert list(table.columns[1].cells) == ["0", "1", "2", "2"]


def test_a_fact_without_its_old_answer_neither_succeeds_nor_fails_along_a_sequence(lm: LM) -> None:
    matrix = lm.evaluate([FACTS[0].model_copy(update={"target_true": None})], metrics="rewrite_acc", along=True, **FEW)
    assert matrix.matrix is not None
    assert matrix.matrix.nll_true.isna().all() and matrix.matrix.success.isna().all()


def test_a_report_shows_rewrite_paraphrases_neighbours_and_locality(lm: LM) -> None:
    fact = FACTS[0].model_copy(update={"locality": (Question(prompt="One and one is", answers=("two",)),)})
    assert [s.asked.kind for s in score_facts(lm, [fact])[0]] == ["rewrite", "paraphrase", "neighbour", "locality"]


def test_models_are_asked_for_answers_where_a_metric_needs_them_and_nowhere_else(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []

    def say(self: LM, texts: list[str], *args: Any, **options: Any) -> list[str]:
        prompts.extend(texts)
        return [" Rome. What else?"] * len(texts)

    monkeypatch.setattr(LM, "generate", say)
    found = lm.evaluate(FACTS[:1], metrics=("efficacy_exact", "paraphrase_said"), **FEW)
    assert found["efficacy_exact"].edited.mean == found["paraphrase_said"].edited.mean == 1
    assert set(prompts) == {FACTS[0].text, *FACTS[0].paraphrases}
    prompts.clear()
    lm.evaluate(FACTS[:1], metrics=("efficacy", "paraphrase"), **FEW)
    assert not prompts


def test_answers_have_ten_tokens_unless_told_otherwise(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def say(self: LM, texts: list[str], max_new_tokens: int, **options: Any) -> list[str]:
        lengths.append(max_new_tokens)
        return [""] * len(texts)

    monkeypatch.setattr(LM, "generate", say)
    score_facts(lm, FACTS[:1])
    score(lm, asked(FACTS[:1], {"rewrite"}))
    score(lm, asked(FACTS[:1], {"rewrite"}), max_new_tokens=3)
    assert lengths == [10, 10, 3]


def test_marks_along_a_sequence() -> None:
    assert steps(0) == [0]
    assert steps(1) == [0, 1]
    assert steps(37) == [0, 1, 2, 5, 10, 20, 37]
    assert steps(100) == [0, 1, 2, 5, 10, 20, 50, 100]


def test_named_questions_get_lines_of_their_own(lm: LM) -> None:
    found = lm.evaluate(metrics="portability", **FEW)
    assert [line.metric for line in found.lines] == ["portability_acc", "portability_acc[one]", "portability_acc[two]"]
    assert (found["portability[one]"].edited.n, found["portability[two]"].edited.n) == (2, 1)


def test_results_are_saved_whole_and_load_again(lm: LM, tmp_path: Path) -> None:
    found = lm.evaluate(along=True, **FEW)
    again = Evaluation.load(found.save(tmp_path / "out"))
    assert again.to_json() == found.to_json()
    pd.testing.assert_frame_equal(again.items, found.items)
    assert again.matrix is not None and len(again.matrix) == len(found.matrix)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "results.parquet",
        "prompts.parquet",
        "matrix.parquet",
        "evaluation.json",
    }
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for record in saved["metrics"]:
        assert {"formula", "source", "decoding", "chance", "edited_n", "edited_low", "base_mean"} <= record.keys()
    with pytest.raises(ConfigError, match=r"an evaluation already.*another folder"):
        found.save(tmp_path / "out")
    assert Evaluation.load(str(found.save(str(tmp_path / "text")))).to_json() == found.to_json()
    assert again["ES"].card.formula in again._repr_html_() or "efficacy" in again._repr_html_()


def test_paths_of_a_suite_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "text.txt").write_text("one\n\ntwo\n")
    suite = tmp_path / "suites" / "suite.yaml"
    monkeypatch.chdir(tmp_path)
    suite.write_text("prose: text.txt\nfacts: facts.jsonl\n")
    found = read_suite(Path("suites/suite.yaml"))
    assert held_out(found.prose) == ("one", "two") and found.facts == Path("suites/facts.jsonl")
    suite.write_text("prose: factbook\n")
    assert read_suite(suite).prose == Suite().prose == read_suite(suite, prose="factbook").prose


def test_a_damaged_or_missing_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no evaluation"):
        Evaluation.load(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"metrics": [{}]}')
    with pytest.raises(ConfigError, match="damaged"):
        Evaluation.load(tmp_path)


def test_a_run_does_not_differ_from_itself_and_does_from_a_worse_one(lm: LM) -> None:
    whole = lm.evaluate(**FEW)
    same = compare(whole, whole)
    assert not same.settings and all(d.paired.p == 1 for d in same.differences)
    weaker = make_lm("llama")
    edit(weaker, FACTS[0], size=0.1)
    other = weaker.evaluate(FACTS, **FEW)
    found = compare(whole, other)
    assert "state_hash" in found.settings
    by_name = {d.metric: d for d in found.differences}
    assert by_name["control_kl"].paired.p < 0.05 and by_name["control_kl"].paired.difference.high < 0
    assert all(d.q >= d.paired.p for d in found.differences)
    assert len(found.to_pandas()) == len(found.differences)


def test_unlike_protocols_are_named(lm: LM) -> None:
    a = lm.evaluate(metrics="efficacy", **FEW)
    b = lm.evaluate(metrics=["efficacy", "PS"], mode="single", passages=2, max_new_tokens=5)
    remarks = " ".join(compare(a, b).remarks)
    assert "mode differs (together and single)" in remarks
    assert "suite.max_new_tokens differs (3 and 5)" in remarks
    assert "Measured in one only: paraphrase" in remarks


def test_evaluations_of_different_facts_are_not_compared(lm: LM) -> None:
    a = lm.evaluate(FACTS[:1], metrics="efficacy", **FEW)
    b = lm.evaluate(FACTS[1:], metrics="efficacy", **FEW)
    with pytest.raises(ConfigError, match="no item in common"):
        compare(a, b)


def test_sampled_texts_depend_on_the_seed_only(lm: LM) -> None:
    torch.manual_seed(1)
    a = lm.evaluate(FACTS[:1], metrics="fluency", **FEW)
    torch.manual_seed(2)
    b = lm.evaluate(FACTS[:1], metrics="fluency", **FEW)
    assert a["GE"].edited.mean == b["GE"].edited.mean
    assert lm.evaluate(FACTS[:1], metrics="fluency", seed=5, **FEW)["GE"].edited.mean != a["GE"].edited.mean


def test_consistency_needs_references_and_rewards_likeness(lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "references.json"
    path.write_text(json.dumps({"f0": ["The capital of Vinland is Rome"], "f1": ["quite other words"]}))
    found = lm.evaluate(FACTS, metrics="RS", references=path, **FEW)
    values = found.items[found.items.state == "edited"].set_index("item").value
    assert values["f0"] > 0 and values["f0"] > values["f1"] and "f2" not in values
    without = lm.evaluate(FACTS, metrics="RS", **FEW)
    assert not without.lines and "No data for: consistency" in without.caption
    path.write_text('{"f0": "a text"}')
    with pytest.raises(ConfigError, match="object of lists of texts"):
        lm.evaluate(FACTS, metrics="RS", references=path, **FEW)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"metrics": "eficacy"}, UnknownName, "Did you mean 'efficacy'"),
        ({"metricks": "ES"}, ConfigError, "there is no setting 'metricks'. Did you mean 'metrics'"),
        ({"passages": 0}, ConfigError, "'passages' = 0"),
        ({"mode": "sequential"}, ConfigError, "Use together or single"),
        ({"mode": "single", "along": True}, ConfigError, "make no sequence"),
        ({"prose": "nowhere.txt"}, ConfigError, "no text file 'nowhere.txt'"),
        ({"lm_eval": "no_such_task", "metrics": "ES"}, ConfigError, "no task no_such_task|not installed"),
    ],
)
def test_wrong_settings_are_one_sentence(lm: LM, settings: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        lm.evaluate(**settings)


def test_facts_of_one_name_are_kept_apart(lm: LM) -> None:
    twice = [FACTS[0], FACTS[0].model_copy(update={"target_new": "Lyon"})]
    found = lm.evaluate(twice, metrics="efficacy", **FEW)
    assert found["ES"].edited.n == 2
    assert set(found.prompts.fact) == {"f0", "f0 (2)"}


@pytest.mark.parametrize("field", ["neighbours", "locality", "portability"])
def test_questions_without_an_answer_stop_no_metric(lm: LM, field: str) -> None:
    facts = [Fact.model_validate(f.model_dump() | {field: [{"prompt": "The sea is"}]}) for f in FACTS]
    found = lm.evaluate(facts, metrics="all", **FEW)
    measured = {line.metric.split("[")[0] for line in found.lines}
    assert {"efficacy", "efficacy_exact"} <= measured
    needing = {"portability": "portability_exact", "locality": "zsre_specificity"}
    assert needing.get(field) not in measured


def test_every_metric_is_made_for_the_full_data(lm: LM) -> None:
    full = [
        f.model_copy(
            update={
                "attributes": ("The capital of Italy is",),
                "locality": Fact.model_validate(
                    f.model_dump() | {"locality": [{"prompt": "The sea is", "answers": ["green"]}]}
                ).locality,
            }
        )
        for f in FACTS
    ]
    found = lm.evaluate(full, metrics="all", **FEW)
    assert {line.metric.split("[")[0] for line in found.lines} == set(metrics.all_metrics()) - {"consistency"}
    for line in found.lines:
        assert line.edited.n > 0 and line.edited.mean == line.edited.mean


def test_the_unedited_models_own_values_are_worked_out_once(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    import editlab.evaluation.evaluate as module

    asked: list[tuple[str, int]] = []
    read = LM.forward

    def counted(self: LM, *args: Any, **options: Any) -> Any:
        asked.append((self.state_hash, 1))
        return read(self, *args, **options)

    monkeypatch.setattr(module, "_KEPT", type(module._KEPT)())
    drift = {"metrics": ("control_kl", "perplexity"), **FEW}
    first = lm.evaluate(**drift)
    lm.undo()
    with monkeypatch.context() as patch:
        patch.setattr(LM, "forward", counted)
        second = lm.evaluate(**drift)
    # Drift compares with the base's own distributions; its prose is not read again.
    assert [state for state, _ in asked].count(lm.base_hash) == 1
    assert [line.base for line in first.lines] == [line.base for line in second.lines]
    monkeypatch.setattr(module, "_KEPT", type(module._KEPT)())
    assert [line.base for line in lm.evaluate(**drift).lines] == [line.base for line in second.lines]
    # Another question is not answered from what is kept.
    other = lm.evaluate(metrics="perplexity", passages=3)
    assert other.lines[0].base.n == 3
    # A model in use may carry somebody's hooks, so nothing of it is kept.
    while lm.ledger.active:
        lm.undo()
    with lm.session() as s:
        s.ablate("mlp_out", 0)
        ablated = lm.evaluate(FACTS, metrics="perplexity", **FEW)
    assert ablated.lines[0].base.mean != first.lines[-1].base.mean


class Forgetful(OrderedDict[Any, Any]):
    """Keeps nothing, as where other threads put in so much that all is dropped at once."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_values_that_another_thread_drops_meanwhile_are_reported(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    want = lm.evaluate(metrics="perplexity", **FEW)
    monkeypatch.setattr("editlab.evaluation.evaluate._KEPT", Forgetful())
    assert lm.evaluate(metrics="perplexity", **FEW).lines == want.lines
