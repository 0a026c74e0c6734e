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
