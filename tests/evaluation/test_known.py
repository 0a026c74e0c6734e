"""Which facts count as known: said by greedy decoding, and not by a guess that any country would get."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_lm import make_lm

from editlab.data.relations import fill, relation
from editlab.errors import ConfigError
from editlab.evaluation import known as module
from editlab.evaluation.known import NOBODY, known
from editlab.evaluation.scorer import Forced


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[int]:
    """Replace the scorer by `answer(prompt, target) -> (probability, says it)`; returns the sizes of its calls."""
    calls: list[int] = []

    def force(lm: Any, pairs: Any, **_: Any) -> list[Forced]:
        calls.append(len(pairs))
        found = [answer(prompt, target) for prompt, target in pairs]
        return [Forced(-math.log(p), (1,), (1,) if says else (0,)) for p, says in found]

    monkeypatch.setattr(module, "force", force)
    return calls


def test_a_class_that_any_country_gets_is_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    language = relation("language")
    nobody = fill(language.stems[0], NOBODY)

    def answer(prompt: str, target: str) -> tuple[float, bool]:
        if prompt == nobody:
            return {"Arabic": 0.3, "Spanish": 0.1}.get(target, 0.01), False
        return 0.5, target in ("Arabic", "Spanish")

    answering(monkeypatch, answer)
    found = known(make_lm("llama"), language)
    # 0.5 is less than twice 0.3 and more than twice 0.1.
    assert {row.answer for row in found.rows} == {"Spanish"}
    arabic = sum(row.answer == "Arabic" for row in language.rows)
    assert found.guessed == arabic > 0
    assert found.not_said + found.guessed + len(found.rows) == len(language.rows)
    assert [f.subject for f in found.facts()] == [row.subject for row in found.rows]


def test_open_relations_need_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    capital = relation("capital")
    calls = answering(monkeypatch, lambda prompt, target: (0.01, target in ("Paris", "Rome")))
    found = known(make_lm("llama"), capital)
    assert {row.answer for row in found.rows} == {"Paris", "Rome"} and found.guessed == 0
    assert calls == [len(capital.rows), 0]


def test_the_outcome_is_kept_per_weights_and_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    capital = relation("capital")
    calls = answering(monkeypatch, lambda prompt, target: (0.01, target == "Paris"))
    first = known(make_lm("llama"), capital)
    n = len(calls)
    assert known(make_lm("llama"), capital) == first and len(calls) == n
    known(make_lm("llama"), capital, capital.stems[1])
    assert len(calls) > n
    n = len(calls)
    known(make_lm("llama", seed=1), capital)
    assert len(calls) > n


def test_verdicts_are_those_of_greedy_decoding() -> None:
    lm, capital = make_lm("gpt2"), relation("capital")
    found = known(lm, capital)
    said = lm.generate([fill(capital.stems[0], row.subject) for row in capital.rows], 12)
    expected = [row for row, text in zip(capital.rows, said, strict=True) if text.startswith(f" {row.answer}")]
    assert list(found.rows) == expected


def test_a_stem_without_a_place_for_the_subject_is_refused() -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        known(make_lm("gpt2"), relation("capital"), "The capital is")


def test_facts_of_a_relation_are_written_as_a_file(cli: Any, model: Any, tmp_path: Path) -> None:
    ended = cli("facts", "capital", "--out", tmp_path / "facts.jsonl", "--limit", 5)
    assert ended.code == 0 and "5 facts" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(row["target_new"] != row["target_true"] for row in rows)
    assert cli("validate", tmp_path / "facts.jsonl").code == 0
    assert "exists already" in cli("facts", "capital", "--out", tmp_path / "facts.jsonl").err
    ended = cli("facts", "capital", "--known", "-m", model(), "--out", tmp_path / "known.jsonl")
    assert ended.code == 2 and "knows 0, does not say 168" in ended.err and not (tmp_path / "known.jsonl").exists()
    assert "Did you mean 'capital'" in cli("facts", "capitol", "--out", tmp_path / "x.jsonl").err
    listed = cli("ls", "relations", "--json").data["relations"]
    assert {"name", "rows", "excluded", "stems", "closed"} <= listed[0].keys()
    assert "Known to be wrong" in cli("cat", "relations").out
