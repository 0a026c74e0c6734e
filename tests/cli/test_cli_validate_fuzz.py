"""`editlab validate` of anything: valid or refused, the same for people and programs, and nothing else."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cli_fixtures import ROWS, Cli
from damage import BYTE_DAMAGE, TREE_DAMAGE
from damaged_rows import damaged_file
from tiny_lm import make_lm

from editlab import registry
from editlab.cli import __main__ as frame
from editlab.cli import validate
from editlab.cli.console import printable
from editlab.state.edit import Delta, Edit
from editlab.state.packs import save_pack

HOSTILE = [
    "!!python/object/apply:os.system ['true']", "a: &a [*a]", "a: *b", "<<: 1", "? [1]\n: 2", "layer: 1\nlayer: 2",
    "a: " + "[" * 3000, "&a [x, x]\n", "- 1", "layer: 2020-13-45", "layer: 1_0", "lr: .nan", "lr: -.inf", "layer: 0o17",
    "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nlr: [*c,*c,*c,*c,*c]",
    "layer: 1\n---\nlayer: 2", "%YAML 3.0\n---\nlayer: 1", "'': 1", "1: 2", "null: 1", "layer: !!binary aGk=",
    "layer: !!set {1, 2}", "\x1b[31mlayer: 1", "lr: 1:30", "{layer: 1, ? }", "layer: |\n  1", "\ufefflayer: 1",
]  # fmt: skip


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sound pack, by name."""
    lm = make_lm("llama", hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2)
    name = lm.adapter.down(lm.model, 0).name
    rows, columns = lm.model.get_parameter(name).shape
    delta = Delta(
        left=lm.model.lm_head.weight[:1].new_ones(rows, 1), right=lm.model.lm_head.weight.new_ones(1, columns)
    )
    lm.ledger.apply(Edit("ready", {"lr": 0.1}, [ROWS[0]], {name: delta}, {"loss": 1.0}))
    folder = save_pack(tmp_path_factory.mktemp("pack") / "pack", lm.ledger, lm.name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def quick_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line with this command alone, made once."""
    app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(frame._top)
    validate.register(app)
    command = typer.main.get_command(app)
    monkeypatch.setattr(frame, "build_app", lambda: command)


def records(rng: random.Random, folder: Path, pack: dict[str, bytes]) -> list[str]:
    """Rows of a layout, damaged."""
    return [str(damaged_file(rng, folder)[0])]


def settings(rng: random.Random, folder: Path, pack: dict[str, bytes]) -> list[str]:
    """Settings of a method, damaged; or YAML that somebody wrote to do harm."""
    method = rng.choice(registry.names())
    fields = registry.get(method).Config.model_fields
    values: dict[str, Any] = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    values = json.loads(json.dumps(values, default=str))
    for _ in range(rng.choice([0, 1, 1, 2])):
        if values:
            rng.choice(TREE_DAMAGE)(rng, values)
    try:
        text = rng.choice(HOSTILE) if rng.random() < 0.15 else yaml.safe_dump(values, sort_keys=False)
    except (yaml.YAMLError, RecursionError, ValueError):
        text = json.dumps(values)
    data = text.encode("utf-8", "surrogatepass")
    path = folder / f"settings.{rng.choice(['yaml', 'yml'])}"
    path.write_bytes(rng.choice(BYTE_DAMAGE)(rng, data) if rng.random() < 0.3 else data)
    return [str(path), "--method", method if rng.random() < 0.9 else rng.choice(["roem", "", "../rome", "a.b", "-"])]


def packs(rng: random.Random, folder: Path, pack: dict[str, bytes]) -> list[str]:
    """A pack folder with a damaged file, one file too few, or a folder in the place of a file."""
    name = rng.choice(list(pack))
    files = dict(pack)
    kind = rng.randrange(5)
    if kind == 0 and name.endswith(".json"):
        tree = json.loads(files[name])
        rng.choice(TREE_DAMAGE)(rng, tree)
        files[name] = json.dumps(tree).encode("utf-8", "surrogatepass")
    elif kind == 1:
        del files[name]
    elif kind != 2:
        files[name] = rng.choice(BYTE_DAMAGE)(rng, files[name])
    target = folder / rng.choice(["pack", "pack.yaml", "pack.jsonl", "p a ck", "päck"])
    target.mkdir()
    for file, data in files.items():
        (target / file).write_bytes(data)
    if kind == 1 and rng.random() < 0.3:
        (target / name).mkdir()
    return [str(target)]


def texts(rng: random.Random, folder: Path, pack: dict[str, bytes]) -> list[str]:
    """Prose, near prose, and noise, under any name."""
    words = rng.choices(
        ["town", "prompt", "subject,", '"target_new"', "{", "}", "[", "]", "\t", "{}", "ö", "\u2028"], k=40
    )
    text = rng.choice([" ".join(words), "".join(rng.choices(string.printable, k=200)), "\n\n".join(words)])
    data = text.encode() if rng.random() < 0.7 else rng.randbytes(rng.choice([1, 60, 4000]))
    name = rng.choice(
        ["a.txt", "a", "a.md", "a.csv", "a.json", "a.jsonl", "a.parquet", "a.yaml", ".hidden", "a\nb.txt"]
    )
    path = folder / name
    path.write_bytes(rng.choice(BYTE_DAMAGE)(rng, data) if rng.random() < 0.4 else data)
    return [str(path)]


def places(rng: random.Random, folder: Path, pack: dict[str, bytes]) -> list[str]:
    """What is no file at all."""
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "empty").mkdir()
    (folder / "empty.yaml").mkdir()
    names = ["loop", "gone.jsonl", "empty", "empty.yaml", "none", "none.yaml", "a/b", "x" * 300, "\x1b[31m", "a\0b", ""]
    return [str(folder / rng.choice(names))] if rng.random() < 0.9 else [rng.choice(["", ".", "/", "\0"])]


KINDS: list[Callable[[random.Random, Path, dict[str, bytes]], list[str]]] = [
    records, records, records, settings, settings, packs, texts, places,
]  # fmt: skip


@pytest.mark.usefixtures("quick_frame")
@pytest.mark.parametrize(("seed", "variants"), [(0, 40), pytest.param(1, 600, marks=pytest.mark.model)])
def test_anything_is_valid_or_refused(
    seed: int, variants: int, cli: Cli, shared_cache: Path, pack: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    codes: dict[int, int] = {}
    for i in range(variants):
        folder = tmp_path / str(i)
        folder.mkdir()
        kind = rng.choice(KINDS)
        words = kind(rng, folder, pack)
        told = f"variant {i}, {kind.__name__}: {words}"
        said, data = cli("validate", *words), cli("validate", *words, "--json")
        assert said.code == data.code in (0, 2), (told, said, data)
        assert not (shared_cache / "reports").exists(), told
        codes[said.code] = codes.get(said.code, 0) + 1
        text = said.out if said.code == 0 else said.err
        assert (said.err if said.code == 0 else said.out) == "", (told, said)
        assert text.strip() and len(text) < 10_000 and len(text.splitlines()) < 40, (told, text[:500])
        assert all(c.isprintable() or c == "\n" for c in text), (told, text)
        assert ("error" in data.data) == (said.code == 2), told
        if said.code == 2:
            error = data.data["error"]
            assert said.err == "error: " + printable("\n".join(x for x in (error["what"], error["fix"]) if x)) + "\n", (
                told
            )
    assert min(codes[0], codes[2]) > 0.1 * variants


def test_what_a_file_calls_itself_does_not_reach_the_terminal(cli: Cli, pack: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    for name, data in pack.items():
        (tmp_path / "pack" / name).write_bytes(data.replace(b'"tiny-llama"', b'"\\u2028"'))
    ended = cli("validate", tmp_path / "pack")
    assert ended.code == 0 and "for \\u2028." in ended.out
