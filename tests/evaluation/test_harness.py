"""lm-eval on base and edited model, with a task whose data is a local file: no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_lm import make_lm

from editlab.errors import ConfigError
from editlab.evaluation.scorer import force
from editlab.state.edit import Delta, Edit

pytest.importorskip("lm_eval", reason="the optional extra 'eval' is not installed")

DOCS = [
    {"question": "The river is", "choices": ["in the", "a king"], "gold": 0},
    {"question": "Who is the king of the", "choices": ["and", "Thule"], "gold": 1},
    {"question": "a is", "choices": ["x", "the"], "gold": 0},
    {"question": "The sea and", "choices": ["the", "b"], "gold": 1},
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    data = tmp_path / "docs.jsonl"
    data.write_text("\n".join(json.dumps(doc) for doc in DOCS))
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_accuracies_are_those_of_our_own_scores(tasks: Path) -> None:
    lm = make_lm("llama")
    name = lm.adapter.down(lm.model, 1).name
    g = torch.Generator().manual_seed(0)
    delta = Delta(dense=torch.randn(lm.model.get_parameter(name).shape, generator=g))
    fact = {"prompt": "{} is", "subject": "x", "target_new": "y"}
    lm.ledger.apply(Edit("by-hand", {}, [fact], {name: delta}))
    found = lm.evaluate(metrics="efficacy_argmax", lm_eval="tiny_choice", lm_eval_tasks=tasks)
    line = found["lm_eval/tiny_choice/acc"]
    for estimate, model in ((line.base, lm.pristine()), (line.edited, lm)):
        right = 0
        for doc in DOCS:
            # lm-eval compares sums of log-probabilities.
            scores = [force(model, [(doc["question"], c)])[0] for c in doc["choices"]]
            totals = [-s.nll * len(s.target) for s in scores]
            right += totals.index(max(totals)) == doc["gold"]
        assert estimate.mean == pytest.approx(right / len(DOCS))
        assert estimate.n == len(DOCS)


def test_a_task_that_does_not_exist_is_named(tasks: Path) -> None:
    with pytest.raises(ConfigError, match="lm-eval has no task tiny_chioce"):
        make_lm("llama").evaluate(
            [{"prompt": "{} is", "subject": "x", "target_new": "y"}], lm_eval="tiny_chioce", lm_eval_tasks=tasks
        )


def test_what_a_task_has_generated_does_not_follow_the_checkpoint_s_generation_configuration(tasks: Path) -> None:
    lm = make_lm("llama")
    docs = [{"question": doc["question"], "answer": lm.generate(doc["question"], 4)[0]} for doc in DOCS[:2]]
    (tasks.parent / "said.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))
    task = yaml.safe_load((tasks / "tiny_choice.yaml").read_text()) | {
        "task": "tiny_said",
        "dataset_kwargs": {"data_files": {"test": str(tasks.parent / "said.jsonl")}},
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["never said"], "do_sample": False, "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    del task["doc_to_choice"]
    (tasks / "tiny_said.yaml").write_text(yaml.safe_dump(task))
    lm.model.generation_config.repetition_penalty = 50.0
    lm.model.generation_config.suppress_tokens = lm.tokenizer(docs[0]["answer"])["input_ids"]
    found = lm.evaluate(
        [{"prompt": "{} is", "subject": "x", "target_new": "y"}],
        metrics="efficacy_argmax",
        lm_eval="tiny_said",
        lm_eval_tasks=tasks,
    )
    assert found["lm_eval/tiny_said/exact_match"].edited.mean == 1.0
    assert lm.model.generation_config.repetition_penalty == 50.0
