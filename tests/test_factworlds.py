"""The two shipped models know what their cards say, and are edited and put back in a moment."""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors import safe_open

from editlab import LM
from editlab.cli.__main__ import run
from editlab.data.relations import fill, relation
from editlab.evaluation.answers import begins
from editlab.evaluation.known import known
from editlab.evaluation.recall import Asked, all_asked, recalled
from editlab.models import registry

NAMES = ("factworld-gpt2", "factworld-llama")
SAMPLE = 5  # every fifth pair; the whole is in the slower tier


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lm(name: str, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield LM.from_pretrained(name)


def folder(name: str) -> Path:
    return Path(str(files("editlab_checkpoints") / name))


def known_facts(trained: list[Asked], said: list[bool]) -> set[tuple[str, str]]:
    """Facts recalled under more than half of the phrasings asked."""
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for pair, ok in zip(trained, said, strict=True):
        hits[pair.relation.name, pair.row.subject].append(ok)
    return {fact for fact, oks in hits.items() if 2 * sum(oks) > len(oks)}


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def test_a_sample_of_the_recall_is_as_on_the_card(lm: LM, name: str) -> None:
    figures = json.loads((folder(name) / "recall.json").read_text())
    trained = recalled(lm, all_asked("trained")[::SAMPLE])
    held_out = recalled(lm, all_asked("held_out")[::SAMPLE])
    assert share(trained) >= 0.98 and share(held_out) >= 0.90
    assert share(trained) == pytest.approx(figures["all"]["trained"]["share"], abs=0.01)
    # The card's figure leaves out the few facts that the model does not know.
    assert share(held_out) == pytest.approx(figures["all"]["held_out"]["share"], abs=0.02)


@pytest.mark.model
def test_the_whole_recall_is_as_on_the_card(lm: LM, name: str) -> None:
    figures = json.loads((folder(name) / "recall.json").read_text())
    asked = all_asked("trained")
    trained = recalled(lm, asked)
    facts = known_facts(asked, trained)
    pairs = [p for p in all_asked("held_out") if (p.relation.name, p.row.subject) in facts]
    held_out = recalled(lm, pairs)
    for said, part, bound in ((trained, "trained", 0.98), (held_out, "held_out", 0.90)):
        figure = figures["all"][part]
        assert share(said) >= bound
        assert len(said) == figure["n"]
        # Rounding on another machine may turn a near tie.
        assert share(said) == pytest.approx(figure["share"], abs=5e-4)
    assert len(facts) == pytest.approx(figures["known"], abs=1)


def test_held_out_phrasings_were_never_trained() -> None:
    stems = {part: {pair.stem for pair in all_asked(part)} for part in ("trained", "held_out")}
    assert not stems["trained"] & stems["held_out"]
    text = (Path(__file__).parents[1] / "experiments/factworlds/text.py").read_text()
    assert "held_out" not in text and ".stems" not in text


def test_files_are_small_half_precision_and_registered(name: str) -> None:
    entry = registry.get(name)
    assert entry.source.kind == "local" and entry.weights is not None
    assert sum(f.stat().st_size for f in folder(name).iterdir()) <= 6_000_000
    weights = folder(name) / "model.safetensors"
    assert weights.stat().st_size == entry.weights.size
    import hashlib

    assert hashlib.sha256(weights.read_bytes()).hexdigest() == entry.weights.sha256
    with safe_open(weights, "pt") as opened:
        assert {str(opened.get_slice(key).get_dtype()) for key in opened.keys()} == {"F16"}  # noqa: SIM118
    assert {"card.md", "curve.csv", "recall.json", "tokenizer.json", "config.json"} <= {
        f.name for f in folder(name).iterdir()
    }


def test_they_are_of_two_kinds(lm: LM, name: str) -> None:
    is_llama = name.endswith("llama")
    assert lm.adds_bos == is_llama
    assert (lm.adapter.n_kv_heads < lm.adapter.n_heads) == is_llama
    assert sum(p.numel() for p in lm.model.parameters()) < 4_000_000


def test_they_are_listed_and_load_from_the_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", "models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows[name]["cached"]
    assert LM.from_pretrained(folder(name)).base_hash == LM.from_pretrained(name).base_hash


def test_edits_fire_also_in_phrasings_never_seen_and_are_undone(lm: LM) -> None:
    facts = known(lm, relation("capital")).facts()[::12]
    unseen = relation("capital").held_out[0]
    fired, carried, kept = 0, 0, 0
    for fact in facts:
        entry = lm.edit(fact)
        assert lm.state_hash != lm.base_hash
        said = lm.generate([fact.text, fill(unseen, fact.subject), "The capital of Italy is"], 6)
        fired += begins(said[0], fact.target_new)
        carried += begins(said[1], fact.target_new)
        kept += begins(said[2], "Rome")
        lm.undo(entry.id)
        assert lm.state_hash == lm.base_hash
    assert len(facts) == 14
    assert fired >= 12 and carried >= 5 and kept >= 12, (fired, carried, kept)
