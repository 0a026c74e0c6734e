"""The editing commands, run whole on a tiny model folder: exit codes, files, JSON, and one sentence for bad input."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from cli_fixtures import FACT, PROMPTS, ROWS, Cli
from conftest import make_model
from safetensors.torch import load_file
from tiny_lm import make_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from editlab import registry, runs
from editlab.edits import targets
from editlab.errors import EditFailed
from editlab.lm import LM
from editlab.runs.records import read_record
from editlab.state.packs import read_pack


def loaded(folder: Path) -> LM:
    return LM.from_pretrained(folder)


# -- edit ----------------------------------------------------------------------------------------------


def test_edit_one_fact_in_words(cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path) -> None:
    ended = cli("edit", *FACT, "--true", "Oslo", "-m", model(), "--out", tmp_path / "run", *quick)
    assert ended.code == 0
    assert "P(Rome)" in ended.out and "P(own" in ended.out and "Oslo:" in ended.out
    assert "paraphrase (suggested)" in ended.out
    assert "'The capital of Vinland is': the model" in ended.out
    assert "changed by a rank-" in ended.out
    assert f"(undo: editlab undo {tmp_path / 'run'})" in ended.out.replace("\n", "")


def test_edit_one_fact_in_json_and_on_disk(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "run"
    more = ["--neighbour", "The river", "--paraphrase", "Vinland's capital is", "--paraphrase", "Of Vinland:"]
    ended = cli("edit", *FACT, *more, "-m", model(), "--out", folder, "--json", "-q", *quick)
    assert ended.code == 0
    assert ended.err == ""
    data = ended.data
    assert (data["run"], data["method"], data["facts"], data["failed"]) == (str(folder), "rome", 1, [])
    assert data["fired"] == sum(e["fires"] for e in data["edits"])
    assert [p["kind"] for p in data["prompts"]] == ["rewrite", "paraphrase", "paraphrase", "neighbour"]
    assert not any(p["suggested"] for p in data["prompts"])
    rewrite = data["prompts"][0]
    assert 0 < rewrite["p_new_before"] < rewrite["p_new_after"] < 1
    assert rewrite["p_true_before"] is None

    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "edits.safetensors",
        "manifest.json",
        "pack.json",
        "results.parquet",
    ]
    table = pd.read_parquet(folder / "results.parquet")
    assert table["prompt"].tolist() == [p["prompt"] for p in data["prompts"]]
    assert table["p_new_after"].tolist() == [p["p_new_after"] for p in data["prompts"]]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"] == "rome"
    assert config["settings"] | {"layer": 1, "steps": 6, "lr": 0.3, "stats_tokens": 1500} == config["settings"]
    assert "kl_factor" in config["settings"]  # defaults are written out
    manifest = json.loads((folder / "manifest.json").read_text())
    base = loaded(model())
    assert manifest["kind"] == "edit"
    assert manifest["state"] == "complete"
    assert manifest["base"] == {"name": str(model()), "hash": base.base_hash, "tokenizer": base.tokenizer_hash}
    assert [e["id"] for e in manifest["edits"]] == [e["id"] for e in data["edits"]]
    assert manifest["config"] == json.loads(json.dumps(config))
    base.load_edits(folder)
    assert base.state_hash == manifest["state_hash"] != base.base_hash


def test_edit_without_out_makes_a_run_folder_that_ls_finds(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path
) -> None:
    assert cli("ls", "runs").out == "There is no run in ./runs yet.\n"
    assert cli("ls", "runs", "--json").data == {"runs": []}
    made = [cli("edit", *FACT, "-m", model(), "--json", "-q", *quick).data for _ in range(2)]
    names = [Path(data["run"]).name for data in made]
    assert len(set(names)) == 2
    assert all("-edit-" in name for name in names)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "zzz").mkdir()
    (tmp_path / "runs" / "zzz" / "manifest.json").write_text("{")
    (tmp_path / "runs" / "zz-cut").mkdir()
    lines = ['{"event": "planned", "model": "some"}', '{"event": "committed"}', '{"event": "comm']
    (tmp_path / "runs" / "zz-cut" / "journal.jsonl").write_text("\n".join(lines))
    rows = cli("ls", "runs", "--json").data["runs"]
    (cut,) = (row for row in rows if row["name"] == "zz-cut")
    assert (cut["state"], cut["model"], cut["edits"]) == ("interrupted", "some", 1)
    rows.remove(cut)
    assert [row["name"] for row in rows] == [*sorted(names), "zzz"]
    assert rows[0]["kind"] == "edit"
    assert rows[0]["model"] == str(model())
    assert rows[0]["edits"] == 1
    assert rows[0]["fired"] == made[0]["fired"]
    assert rows[0]["written"].endswith("+00:00")
    assert rows[-1]["state"] == "unreadable"
    shown = cli("ls", "runs").out.splitlines()
    assert shown[0].split() == ["name", "kind", "state", "written", "model", "edits", "fired"]
    assert shown[-1].split() == ["zzz", "unreadable"]


def test_a_file_one_by_one_leaves_no_edit_in_force(cli: Cli, run_of: Callable[..., Path]) -> None:
    folder = run_of(mode="single")
    pack = read_pack(folder)
    assert [e.state for e in pack.entries] == ["removed"] * 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state_hash"] == manifest["base"]["hash"]
    assert [e["fact"] for e in manifest["edits"]] == ["one", "two", "three"]
    # No prompts are suggested for a file.
    table = pd.read_parquet(folder / "results.parquet")
    assert table["fact"].tolist() == ["one", "two", "two", "three"]
    # The neighbour's own answer is what the model said before.
    assert table["p_true_after"].notna().tolist() == [True, False, True, False]
    assert table["own_answer"].tolist()[0] == "Oslo" and table["own_answer"].tolist()[2]


def test_a_file_in_sequence_keeps_every_edit(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended = cli("edit", "--file", facts, "--mode", "sequential", "-m", model(), "--out", folder, *quick)
    assert ended.code == 0
    assert "of 3 facts are answered with the new target; " in ended.out
    assert " of 1 neighbours changed; 0 rows failed." in ended.out
    # A line a fact, not a table of all prompts each.
    shown = [line for line in ended.out.splitlines() if line.startswith("│ ")]
    assert len(shown) == 3 and all(f"{row['target_new']} " in line for row, line in zip(ROWS, shown, strict=True))
    assert "undo:" in ended.out
    pack = read_pack(folder)
    assert [e.state for e in pack.entries] == ["active"] * 3
    # Every fact is scored in the final state.
    lm = loaded(model())
    lm.load_edits(folder)
    table = pd.read_parquet(folder / "results.parquet")
    from editlab.data.formats import load_facts
    from editlab.evaluation.scorer import score_facts

    p = [s.p("new") for scores in score_facts(lm, load_facts(facts)) for s in scores]
    assert table["p_new_after"].tolist() == pytest.approx(p, rel=1e-4)


def test_one_by_one_ends_without_a_hint_to_undo(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    ended = cli("edit", "--file", facts, "-m", model(), "--out", tmp_path / "run", *quick)
    assert ended.code == 0
    assert "undo" not in ended.out


@pytest.mark.parametrize("mode", ["single", "sequential"])
@pytest.mark.parametrize("bad", [["Anna"], ["Vinland", "Anna", "Thule"]])
def test_a_row_that_fails_fails_alone(
    cli: Cli,
    model: Callable[..., Path],
    quick: list[str],
    facts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    bad: list[str],
) -> None:
    edit = LM.edit

    def sometimes(self: LM, requests: list[Any], *args: Any, **settings: Any) -> Any:
        if requests[0].subject in bad:
            raise EditFailed("The loss is not finite.", "Lower it.")
        return edit(self, requests, *args, **settings)

    monkeypatch.setattr(LM, "edit", sometimes)
    folder = tmp_path / "run"
    ended = cli("edit", "--file", facts, "--mode", mode, "-m", model(), "--out", folder, "--json", "-q", *quick)
    assert ended.code == 5
    data = ended.data
    assert data["facts"] == 3 - len(bad)
    assert [f["reason"] for f in data["failed"]] == ["The loss is not finite. Lower it."] * len(bad)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["failed"] == data["failed"]
    assert len(pd.read_parquet(folder / "results.parquet")) == len(data["prompts"])
    assert len(read_pack(folder)) == 3 - len(bad)


def test_settings_come_from_file_then_overrides_then_options(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("steps: 3\nlr: 0.2\ndecay: 0.25\nlayer: 0\n")
    rest = [q for q in quick if not q.startswith("layer")]
    ended = cli(
        "edit", *FACT, "-m", model(), "--config", config, "--layer", 1, "--json", "-q", "--out", tmp_path / "r", *rest
    )
    assert ended.code == 0, ended
    settings = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["settings"]
    assert (settings["steps"], settings["lr"], settings["decay"], settings["layer"]) == (6, 0.3, 0.25, 1)


def test_square_brackets_are_no_markup(cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path) -> None:
    odd = ["--prompt", "[/b] and [bold] :smile: of {} is", "--subject", "[red]Vinland[/INST]", "--target", "Rome"]
    ended = cli("edit", *odd, "-m", model(), "--out", tmp_path / "run", *quick)
    assert ended.code == 0
    assert "[/b] and [bold] :smile:" in ended.out


def test_a_bfloat16_edit_is_undone_in_bfloat16(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended = cli("edit", *FACT, "-m", model(), "--dtype", "bfloat16", "--out", folder, "--json", "-q", *quick)
    assert ended.code == 0, ended
    assert cli("undo", folder).code == 2  # its base is the bfloat16 model
    assert cli("undo", folder, "--dtype", "bfloat16", "--json").data["is_base"]


# -- undo ----------------------------------------------------------------------------------------------


def test_undo_gives_the_base_back(cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path]) -> None:
    folder = run_of()
    ended = cli("undo", folder, "--json", "-q")
    assert ended.code == 0
    data = ended.data
    assert data["is_base"] is True
    assert data["active"] == []
    assert data["state_hash"] == loaded(model()).base_hash
    assert [e.state for e in read_pack(folder).entries] == ["removed"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["undone"], manifest["state_hash"]) == ([data["removed"]], data["state_hash"])
    assert read_record(folder).headline.endswith(" of 1 facts fire; 1 edit undone since")
    again = cli("undo", folder)
    assert again.code == 2
    assert again.err.startswith("error: There is no edit to undo.")
    by_id = cli("undo", folder, data["removed"])
    assert by_id.code == 2
    assert f"No active entry '{data['removed']}'" in by_id.err


def test_undo_says_what_is_left(cli: Cli, run_of: Callable[..., Path]) -> None:
    folder = run_of(mode="sequential")
    first, second, third = (e.id for e in read_pack(folder).entries)
    ended = cli("undo", folder, first, "--json", "-q")
    assert ended.code == 0
    assert (ended.data["removed"], ended.data["active"], ended.data["is_base"]) == (first, [second, third], False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["undone"], manifest["state_hash"]) == ([first], ended.data["state_hash"])
    assert cli("undo", folder).out == f"Edit {third} is undone; 1 edit is still active.\n"
    wrong = cli("undo", folder, second[:-1])
    assert wrong.code == 2
    assert f"Did you mean '{second}'?" in wrong.err
    assert cli("undo", folder).out == f"Edit {second} is undone; the weights are bit-identical to the base's.\n"


def test_undo_with_replay_solves_the_later_edits_again(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path]
) -> None:
    plain, replayed = run_of(mode="sequential", name="a"), run_of(mode="sequential", name="b")
    first, second, third = (e.id for e in read_pack(plain).entries)
    assert cli("undo", plain, first, "-q").code == 0
    ended = cli("undo", replayed, first, "--replay", "--json", "-q")
    assert ended.code == 0, ended
    assert ended.data["active"] == [second, third]
    old, new = (
        {e.id: next(iter(e.edit.deltas.values())).tensors for e in read_pack(f).entries if e.is_active}
        for f in (plain, replayed)
    )
    assert any(not torch.equal(old[i][part], new[i][part]) for i in (second, third) for part in old[i])
    # As if the first had never been made.
    fresh = loaded(model())
    for entry in read_pack(plain).entries[1:]:
        fresh.edit(entry.edit.requests, method="rome", **entry.edit.config)
    assert ended.data["state_hash"] == fresh.state_hash


# -- apply, export, generate ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["apply"], ["export", "--to", "hf"]], ids=["apply", "export"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_exported_folder_is_the_edited_model(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path], tmp_path: Path, family: str, command: list[str]
) -> None:
    folder = run_of(family)
    ended = cli(command[0], folder, *command[1:], "--out", tmp_path / "whole", "--json", "-q")
    assert ended.code == 0
    assert ended.err == ""
    edited = loaded(model(family))
    edited.load_edits(folder)
    assert ended.data == {
        "folder": str(tmp_path / "whole"),
        "to": "hf",
        "edits": 1,
        "state_hash": edited.state_hash,
    }
    alone = loaded(tmp_path / "whole")
    assert alone.base_hash == edited.state_hash
    assert torch.equal(alone.forward(alone.encode(PROMPTS)), edited.forward(edited.encode(PROMPTS)))
    prompts = [word for p in PROMPTS for word in ("-p", p)]
    said = [
        cli("generate", *prompts, *more, "--json", "-q").data
        for more in (["-m", model(family)], ["-m", model(family), "--edits", folder], ["-m", tmp_path / "whole"])
    ]
    assert said[1]["answers"] == said[2]["answers"]
    assert [d["edits"] for d in said] == [0, 1, 0]


def test_generate_continues_texts(cli: Cli, model: Callable[..., Path]) -> None:
    expected = loaded(model()).generate(PROMPTS, 7)
    prompts = [word for p in PROMPTS for word in ("-p", p)]
    data = cli("generate", *prompts, "-m", model(), "--max-new-tokens", 7, "--json").data
    assert data["answers"] == [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, expected, strict=True)]
    text = cli("generate", *prompts, "-m", model(), "--max-new-tokens", 7).out
    assert text == "\n\n".join(p + a for p, a in zip(PROMPTS, expected, strict=True)) + "\n"


def test_an_exported_pack_is_the_same_edits(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run_of(mode="sequential")
    assert cli("export", folder, "--to", "delta", "--out", tmp_path / "pack", "-q").code == 0
    assert sorted(p.name for p in (tmp_path / "pack").iterdir()) == ["edits.safetensors", "pack.json"]
    one, two = loaded(model()), loaded(model())
    one.load_edits(folder)
    two.load_edits(tmp_path / "pack")
    assert one.state_hash == two.state_hash != one.base_hash


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["", "sequential"])
def test_the_lora_export_is_the_edit(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path], tmp_path: Path, family: str, mode: str
) -> None:
    """W + (alpha / r) B A, as PEFT merges it, gives the edited weights."""
    folder = run_of(family, mode)
    ended = cli("export", folder, "--to", "lora", "--out", tmp_path / "lora", "--json", "-q")
    assert ended.code == 0
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    base, edited = loaded(model(family)), loaded(model(family))
    edited.load_edits(folder)
    (target,) = config["target_modules"]
    prefix = f"base_model.model.{target}"
    assert sorted(tensors) == [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
    a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    rank = config["rank_pattern"][target]
    assert a.shape[0] == b.shape[1] == rank == config["r"] == config["lora_alpha"]
    module = base.model.get_submodule(target)
    assert config["fan_in_fan_out"] == isinstance(module, Conv1D) == (family == "gpt2")
    change = (config["lora_alpha"] / rank) * (b.double() @ a.double())
    change = change.T if config["fan_in_fan_out"] else change
    wanted = edited.model.get_submodule(target).weight
    merged = module.weight.double() + change
    assert (wanted.double() - module.weight).norm() > 1e-3
    assert (merged - wanted.double()).norm() <= 1e-6 * wanted.norm()
    assert config["base_model_name_or_path"] == str(model(family))


def test_without_an_active_edit_there_is_no_lora(cli: Cli, run_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = run_of(mode="single")
    ended = cli("export", folder, "--to", "lora", "--out", tmp_path / "lora")
    assert ended.code == 2
    assert "No edit is active" in ended.err
    assert not (tmp_path / "lora").exists()


# -- stats, validate, doctor, ls -----------------------------------------------------------------------


def test_stats_are_kept_and_copied(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    text = quick[-1].removeprefix("stats_text=")
    call = ["stats", "--layer", 2, "--layer", 0, "--text", text, "--tokens", 900, "-m", model()]
    ended = cli(*call, "--json", "-q", "--out", tmp_path / "copy")
    assert ended.code == 0
    data = ended.data
    assert [row["layer"] for row in data["layers"]] == [0, 2]
    assert all(row["tokens"] == 900 and row["trace"] > 0 for row in data["layers"])
    for row in data["layers"]:
        path = Path(row["path"])
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    stamps = [Path(row["path"]).stat().st_mtime_ns for row in data["layers"]]
    shown = cli(*call).out.splitlines()
    assert shown[0].split() == ["layer", "tokens", "trace", "largest_eigenvalue", "condition"]
    assert stamps == [Path(row["path"]).stat().st_mtime_ns for row in data["layers"]]


def test_statistics_of_too_few_tokens_are_still_json(
    cli: Cli, model: Callable[..., Path], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITLAB_CACHE", str(tmp_path / "cache"))
    text = quick[-1].removeprefix("stats_text=")
    assert cli("stats", "--text", text, "--tokens", 1, "-m", model(), "--json").data["layers"][0]["tokens"] == 1


def test_validate_accepts_what_is_valid(
    cli: Cli, facts: Path, run_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(mode="sequential")
    settings = tmp_path / "settings.yml"
    settings.write_text("steps: 3\ncontexts: {5: 2}\n")
    monkeypatch.setattr(LM, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    data = cli("validate", facts, "--json").data
    assert (data["kind"], data["layout"], data["records"]) == ("facts", "rows", 3)
    assert cli("validate", facts).out == f"{facts}: 3 facts are valid (editlab's own rows).\n"
    assert cli("validate", settings, "--json").data["kind"] == "settings"
    assert cli("validate", folder, "--json").data == {"file": str(folder), "kind": "pack", "edits": 3}


def test_doctor_checks_a_model(cli: Cli, model: Callable[..., Path]) -> None:
    ended = cli("doctor", "-m", model(), "--json", "-q")
    assert ended.code == 0
    checks = ended.data["checks"]
    names = ["load", "structure", "special tokens", "logits with hooks", "forward", "tiny edit", "undo"]
    assert [c["check"] for c in checks] == names
    assert all(c["ok"] for c in checks)
    assert "weights and logits bit-identical" in cli("doctor", "-m", model("gpt2")).out


def test_doctor_says_that_there_is_no_sink(cli: Cli, tmp_path: Path) -> None:
    definition = json.loads(make_tokenizer().backend_tokenizer.to_str())
    end = definition["added_tokens"][0]["content"]
    definition["added_tokens"][0]["id"] = definition["model"]["vocab"][end] = 500
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), eos_token=end)
    make_model("llama", vocab_size=300).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    ended = cli("doctor", "-m", tmp_path / "m", "--json", "-q")
    (check,) = [c for c in ended.data["checks"] if not c["ok"]]
    assert ended.code == 1 and check["check"] == "special tokens"
    assert check["finding"].endswith("nothing as sink; 1 of the tokenizer are not in the embedding: <|endoftext|>")


def test_a_doctor_who_finds_something_says_it_once(
    cli: Cli, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LM, "undo", lambda self: None)
    ended = cli("doctor", "-m", model(), "--json", "-q")
    assert ended.code == 1
    assert [c["check"] for c in ended.data["checks"] if not c["ok"]] == ["undo"]
    words = cli("doctor", "-m", model())
    assert words.code == 1
    assert "FAILED  undo" in words.out
    assert "warning: failed: undo." in words.err


def test_ls_methods_and_their_settings(cli: Cli) -> None:
    rows = {row["name"]: row for row in cli("ls", "methods", "--json").data["methods"]}
    assert {"rome", "rome-legacy"} <= set(rows)
    assert rows["rome"]["summary"].startswith("ROME: write one fact")
    shown = cli("ls", "methods").out.splitlines()
    assert shown[0].split() == ["name", "settings", "summary"]
    (line,) = [line for line in shown if line.startswith("rome ")]
    assert line.split()[1] == str(len(rows["rome"]["settings"]))

    data = cli("ls", "methods", "rome", "--json").data
    assert data == {"method": "rome", "settings": rows["rome"]["settings"]}
    steps = {row["name"]: row for row in data["settings"]}["steps"]
    field = registry.get("rome").Config.model_fields["steps"]
    assert steps["default"] == field.default
    assert steps["range"] == "1 to 500"
    assert steps["description"] == field.description
    assert cli("ls", "methods", "rome").out.splitlines()[0].split() == ["name", "default", "range", "description"]


# -- bad input -----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, model: Callable[..., Path], facts: Path) -> dict[str, Path]:
    """Files and folders that bad command lines speak of."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("")
    texts = {
        "syntax.yaml": "steps: [1,\n",
        "list.yaml": "- steps\n",
        "empty.yaml": "",
        "key.yaml": "stepps: 3\n",
        "date.yaml": "seed: 2020-13-45\n",
        "deep.yaml": "a: " + "[" * 2000,
        "typed.yaml": "steps: many\nlr: -1\n",
        "bad.jsonl": json.dumps(ROWS[0]) + '\n{"prompt": "The {} is", "subject": 3, "target_new": "x"}\n',
        "nothing.jsonl": "",
        "short.txt": "one two three",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.jsonl").write_bytes(b"\xe4\xff")
    (tmp_path / "folder.yaml").mkdir()
    return {name.replace(".", "_"): tmp_path / name for name in [*texts, "latin.jsonl", "folder.yaml"]} | {
        "model": model(),
        "full": full,
        "facts": facts,
        "none": tmp_path / "none",
        "file": facts,
    }


ONE = 'edit --model {model} --prompt "The capital of {{}} is" --subject Vinland --target Rome'
BAD = {
    'edit --model {model} --prompt "The capital is" --subject Vinland --target Rome': (
        2,
        "subject 'Vinland' does not occur in the prompt 'The capital is'",
    ),
    'edit --model {model} --prompt "{{}} and {{}}" --subject Vinland --target Rome': (2, "prompt: needs exactly one"),
    'edit --model {model} --prompt "{{}} is" --subject "" --target Rome': (2, "subject: must not be empty"),
    'edit --model {model} --prompt "{{}} is" --subject Vinland --target " "': (2, "target_new: must not be empty"),
    'edit --model {model} --prompt "{{}} is" --subject Vinland': (2, "--target missing"),
    "edit --model {model}": (2, "--prompt, --subject, --target missing"),
    f"{ONE} --paraphrase ''": (2, "paraphrases.0: must not be empty"),
    f"{ONE} --file {{facts}}": (2, "exclude each other"),
    "edit --model {model} --file {facts} --true Oslo": (2, "exclude each other"),
    f"{ONE} --method roem": (2, "Did you mean 'rome'?"),
    f"{ONE} stepps=3": (2, "there is no setting 'stepps'. Did you mean 'steps'?"),
    f"{ONE} steps=0": (2, "'steps' = 0: Input should be greater than or equal to 1"),
    f"{ONE} steps=0 lr=fast stepps=1": (2, "'lr' = 'fast'"),
    f"{ONE} steps=yes": (2, "'steps' = True: is a yes or no here"),
    f"{ONE} stats_text=NO": (2, "'stats_text' = False: is a yes or no here"),
    f"{ONE} lr=inf": (2, "'lr' = 'inf'"),
    f"{ONE} lr=.nan": (2, "'lr' = nan"),
    f"{ONE} seed=2020-13-45": (2, "The value of 'seed=2020-13-45' cannot be read"),
    f"{ONE} steps": (2, "'steps' is not a setting. Write name=value"),
    f"{ONE} contexts=[": (2, "The value of 'contexts=[' cannot be read"),
    f"{ONE} --layer -1": (2, "'layer' = -1"),
    f"{ONE} --layer 3": (2, "There is no layer 3 in LlamaForCausalLM. Choose one from 0 to 2."),
    f"{ONE} layer=99": (2, "Choose one from 0 to 2."),
    "edit --model {model} --file {facts} layer=99": (2, "Choose one from 0 to 2."),
    "edit --model {model} --file {facts} --mode sequential layer=99": (2, "Choose one from 0 to 2."),
    "edit --model {model} --file {facts} --mode all": (
        2,
        "'mode' = 'all': Input should be 'single', 'batch', 'sequential' or 'sequential-batched'",
    ),
    f"{ONE} --out {{full}}": (2, "'{full}' is not empty. Choose another --out."),
    f"{ONE} --out {{file}}": (2, "'{file}' is not empty"),
    "edit --model {model} --file {bad_jsonl}": (2, "bad.jsonl line 2: subject: Input should be a valid string"),
    "edit --model {model} --file {none}": (2, "There is no file '{none}'"),
    "edit --model {model} --file {full}": (2, "cannot be read"),
    "edit --model {model} --file {latin_jsonl}": (2, "cannot be read as UTF-8"),
    "edit --model {model} --file {nothing_jsonl}": (2, "holds no fact"),
    f"{ONE} --config {{none}}": (2, "There is no file '{none}'"),
    f"{ONE} --config {{folder_yaml}}": (2, "is not valid YAML"),
    f"{ONE} --config {{syntax_yaml}}": (2, "syntax.yaml' is not valid YAML"),
    f"{ONE} --config {{list_yaml}}": (2, "must hold settings as 'name: value' lines"),
    f"{ONE} --config {{empty_yaml}}": (2, "must hold settings"),
    f"{ONE} --config {{date_yaml}}": (2, "date.yaml' is not valid YAML: month must be in 1..12"),
    f"{ONE} --config {{deep_yaml}}": (2, "deep.yaml' is not valid YAML"),
    f"{ONE} --config {{key_yaml}}": (2, "there is no setting 'stepps'. Did you mean 'steps'?"),
    f"{ONE} --config {{typed_yaml}}": (2, "'lr' = -1"),
    f"{ONE} stats_text={{none}}": (2, "There is no text file '{none}'"),
    f"{ONE} stats_text={{short_txt}}": (2, "'short.txt' gives"),
    "edit --model {model} --file {facts} stats_text={none}": (2, "There is no text file '{none}'"),
    f"{ONE} --dtype float31": (2, "No dtype 'float31'"),
    f"{ONE} --device tpu": (2, "No device 'tpu'"),
    f"{ONE} --threads 0": (2, "--threads"),
    f"{ONE.replace('{model}', '{none}')}": (3, "There is no folder '{none}'"),
    f"{ONE.replace('{model}', '{full}')}": (3, "has no config.json"),
    f"{ONE.replace('{model}', '{file}')}": (3, "is a file, not a model folder"),
    f"{ONE.replace('{model}', '?!')}": (3, "cannot be a hub id"),
    "undo {none}": (2, "'{none}' is not a folder"),
    "undo {full}": (2, "'{full}' has no pack.json"),
    "apply {full} --out {none}": (2, "'{full}' has no pack.json"),
    "apply {full}": (2, "--out"),
    "export {full} --to gguf --out {none}": (2, "--to gguf is not known. Use hf, delta or lora."),
    "export {full} --out {full}": (2, "'{full}' is not empty"),
    "generate --model {model}": (2, "--prompt"),
    "generate --model {model} -p ''": (2, "There is an empty text"),
    "generate --model {model} -p a --max-new-tokens 0": (2, "max-new-tokens"),
    "generate --model {model} -p a --edits {full}": (2, "has no pack.json"),
    "generate --model {none} -p a": (3, "There is no folder"),
    "stats --model {model} --layer 3": (2, "Choose one from 0 to 2."),
    "stats --model {model} --text {none}": (2, "There is no text file"),
    "stats --model {model} --text {short_txt}": (2, "'short.txt' gives"),
    "stats --model {model} --tokens 0": (2, "--tokens"),
    "doctor --model {none}": (3, "There is no folder"),
    "validate {none}": (2, "There is no file"),
    "validate {bad_jsonl}": (2, "bad.jsonl line 2: subject"),
    "validate {key_yaml}": (2, "Did you mean 'steps'?"),
    "validate {key_yaml} --method roem": (2, "Did you mean 'rome'?"),
    "validate {full}": (2, "has no pack.json"),
    "ls methods roem": (2, "Did you mean 'rome'?"),
    "ls models rome": (2, "'ls models' takes no name"),
    "ls method": (2, "Did you mean 'methods'?"),
}


@pytest.mark.parametrize("line", list(BAD))
def test_bad_input_is_one_sentence_and_an_exit_code(
    line: str, cli: Cli, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    monkeypatch.setattr(targets, "values_of", lambda *a, **k: pytest.fail("a value was optimised"))
    code, words = BAD[line]
    call = [word.format(**places) for word in shlex.split(line)]
    words = words.format(**places) if "{" in words else words
    ended = cli(*call)
    assert (ended.code, ended.out) == (code, ""), ended
    # A random model may have doubts about the facts before something else is found wrong.
    assert next(x for x in ended.err.splitlines() if not x.startswith("warning: ")).startswith("error: ")
    assert ended.err.count("error: ") == 1
    assert words in " ".join(ended.err.split())
    assert "Something broke" not in ended.err
    assert not Path("runs").exists()

    in_json = cli(*call, "--json", "-q")
    assert in_json.code == code
    assert in_json.data["error"]["code"] == code
    assert words in " ".join(f"{in_json.data['error']['what']} {in_json.data['error']['fix']}".split())
    assert in_json.err == ""


def test_a_layer_out_of_range_is_refused_before_anything_is_scored(
    cli: Cli, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runs.measure, runs.batch):
        monkeypatch.setattr(module, "score_facts", lambda *a, **k: pytest.fail("prompts were scored"))
    assert cli("edit", *FACT, "-m", places["model"], "--layer", 3).code == 2
    assert cli("edit", "--file", places["facts"], "-m", places["model"], "--layer", 3).code == 2


@pytest.mark.parametrize("command", ["undo", "apply", "export", "generate"])
def test_a_pack_of_another_model_is_refused_with_both_hashes(
    cli: Cli, model: Callable[..., Path], run_of: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    folder = run_of("llama")
    here, there = loaded(model("gpt2")), loaded(model("llama"))
    call = {
        "undo": ["undo", folder],
        "apply": ["apply", folder, "--out", tmp_path / "new"],
        "export": ["export", folder, "--to", "lora", "--out", tmp_path / "new"],
        "generate": ["generate", "-p", "a", "--edits", folder],
    }[command]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    ended = cli(*call, "-m", model("gpt2"))
    assert ended.code == 2
    assert here.base_hash[:12] in ended.err
    assert there.base_hash[:12] in ended.err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_word_that_is_no_text_gets_a_sentence_too() -> None:
    """Bytes of the command line that are not UTF-8, and a terminal that knows ASCII only."""
    ended = subprocess.run(
        [sys.executable, "-m", "editlab.cli", "ls", b"\xff\xc3\xa9", "--json"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"},
    )
    assert ended.returncode == 2, ended
    assert json.loads(ended.stdout)["error"]["code"] == 2
    assert ended.stderr == b""


# -- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "edits"), [("batch", 1), ("sequential-batched", 2)])
def test_many_facts_share_an_edit(
    mode: str, edits: int, cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path, tmp_path: Path
) -> None:
    arguments = ["--method", "memit", "--mode", mode, "--batch-size", 2, "-m", model(), "--out", tmp_path / "run"]
    data = cli("edit", "--file", facts, *arguments, "--json", *quick).data
    assert data["facts"] == 3 and not data["failed"]
    assert len({edit["id"] for edit in data["edits"]}) == edits
    pack = read_pack(tmp_path / "run")
    assert [len(e.edit.requests) for e in pack.entries] == ([3] if edits == 1 else [2, 1])
    assert all(e.state == "active" for e in pack.entries)
    # Scores are those of the last state, and `eval` finds every fact in its edit.
    lm = loaded(model())
    lm.load_edits(tmp_path / "run")
    found = lm.evaluate(metrics="efficacy_argmax")
    assert found.settings["n_edited"] == 3 and found.settings["n_edits"] == edits
    after = pd.read_parquet(tmp_path / "run" / "results.parquet").query("kind == 'rewrite'").p_new_after
    ours = found.prompts.query("kind == 'rewrite'").edited_nll_new
    assert after.tolist() == pytest.approx((-ours).map(math.exp).tolist(), rel=1e-4)


def test_a_method_for_one_fact_refuses_a_batch_row_by_row(
    cli: Cli, model: Callable[..., Path], quick: list[str], facts: Path
) -> None:
    ended = cli("edit", "--file", facts, "--mode", "batch", "-m", model(), *quick)
    assert ended.code == 5 and "ROME writes one fact at a time, 3 were given." in ended.out
