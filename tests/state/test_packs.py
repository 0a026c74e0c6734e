"""Packs: exact round trips, hostile files, and interrupted saves."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from editlab.errors import ConfigError, EditlabError, PackError
from editlab.state.edit import Delta, Edit
from editlab.state.ledger import Ledger
from editlab.state.packs import apply_pack, check_room, read_pack, reading, save_pack
from editlab.state.packs.manifest import MAX_JSON_BYTES
from editlab.state.packs.records import lines_of
from editlab.state.packs.writing import _records
from editlab.state.weights import WeightView

IDS = torch.tensor([[1, 5, 9, 2, 7]])
DOWN, UP, EMBED = (
    "transformer.h.0.mlp.c_proj.weight",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.wte.weight",
)


def gpt2(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=32)
    return GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)


def llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def edited(base: nn.Module, seeds: range = range(3)) -> Ledger:
    """A ledger with low-rank, dense, float32, float64, extra-tensor and removed entries."""
    view = WeightView(base)
    ledger = Ledger(view)
    names = [n for n in view.names() if view.base(n).ndim == 2]
    for seed in seeds:
        torch.manual_seed(seed)
        a, b = names[-1], names[-2]
        rows, cols = view.base(a).shape
        deltas = {
            a: Delta(left=torch.randn(rows, 2), right=torch.randn(2, cols)),
            b: Delta(dense=0.1 * torch.randn(view.base(b).shape, dtype=torch.float64)),
        }
        requests = [{"prompt": "{} → is", "subject": "Ürümqi 乌鲁木齐", "target_new": "𝔘", "n": 1e-3 + seed}]
        extra = {"keys": torch.randn(3, 4).bfloat16(), "ids": torch.arange(3), "none": torch.zeros(0, 2)}
        ledger.apply(Edit("rome", {"lr": 0.1, "layers": [5], "x": None}, requests, deltas, {"loss": 0.5}, extra))
    if len(ledger) > 1:
        ledger.remove(list(ledger)[1].id)
    return ledger


def weights_of(ledger: Ledger) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in ledger.view.model.named_parameters()}


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_save_then_load_on_a_fresh_base_is_exact(
    make: Callable[..., nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    ledger = edited(make(dtype))
    folder = save_pack(tmp_path / "deep" / "pack", ledger, "tiny")
    assert files(folder) == ["edits.safetensors", "pack.json"]
    pack = read_pack(folder)
    for path in folder.iterdir():
        path.unlink()  # a pack in memory does not need its folder
    fresh = Ledger(WeightView(make(dtype)))
    entries = apply_pack(pack, fresh)
    assert same_weights(weights_of(fresh), weights_of(ledger))
    assert fresh.view.current_hash == ledger.view.current_hash
    for old, new in zip(ledger, entries, strict=True):
        for attribute in ("id", "created", "state", "base_hash", "parent_state_hash", "solved_elsewhere"):
            assert getattr(new, attribute) == getattr(old, attribute)
        for attribute in ("method", "config", "requests", "info", "digest"):
            assert getattr(new.edit, attribute) == getattr(old.edit, attribute)
        assert new.edit.tensors.keys() == old.edit.tensors.keys()
        for name, t in old.edit.tensors.items():
            assert torch.equal(new.edit.tensors[name], t)
            assert new.edit.tensors[name].dtype == t.dtype
    assert [e.solved_elsewhere for e in entries] == [False, False, True]
    fresh.redo(entries[1].id)
    ledger.redo(entries[1].id)
    assert same_weights(weights_of(fresh), weights_of(ledger))
    fresh.clear()
    assert fresh.view.current_hash == fresh.view.base_hash


def test_an_empty_ledger_and_one_edit_twice_can_be_saved(tmp_path: Path) -> None:
    ledger = Ledger(WeightView(gpt2()))
    assert len(read_pack(save_pack(tmp_path, ledger, "tiny"))) == 0
    edit = Edit("m", {}, [], {DOWN: Delta(dense=torch.ones(64, 16))})
    ledger.apply(edit)
    ledger.apply(edit)
    fresh = Ledger(WeightView(gpt2()))
    apply_pack(read_pack(save_pack(tmp_path, ledger, "tiny")), fresh)
    assert same_weights(weights_of(fresh), weights_of(ledger))
    fresh.apply(edit)
    assert len({e.id for e in fresh}) == 3


def test_another_base_is_refused_with_both_hashes_unless_forced(tmp_path: Path) -> None:
    ledger = edited(gpt2())
    pack = read_pack(save_pack(tmp_path, ledger, "tiny"))
    other = Ledger(WeightView(gpt2(seed=1)))
    with pytest.raises(PackError) as caught:
        apply_pack(pack, other)
    for part in ("made for 'tiny'", pack.base_hash[:12], other.view.base_hash[:12]):
        assert part in str(caught.value)
    assert len(other) == 0
    assert other.view.edited == []
    entries = apply_pack(pack, other, force=True)
    assert all(e.solved_elsewhere for e in entries)
    with pytest.raises(PackError, match="does not fit"):
        apply_pack(pack, Ledger(WeightView(llama())), force=True)


def test_a_pack_that_tells_its_model_s_config_is_read(pack_folder: Path) -> None:
    entries = len(read_pack(pack_folder).entries)
    for value in ("0" * 64, None):  # as older packs have it
        in_json(lambda c, value=value: c["base"].update(config_hash=value))(pack_folder)
        assert len(read_pack(pack_folder).entries) == entries


def test_a_pack_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    ledger = edited(gpt2())
    pack = read_pack(save_pack(tmp_path, ledger, "tiny"))
    target = Ledger(WeightView(gpt2()))
    apply_pack(pack, target)
    before = weights_of(target)
    heard: list[tuple[str, ...]] = []
    target.view.on_change.append(heard.append)
    with pytest.raises(PackError, match="already has an entry"):
        apply_pack(pack, target)
    assert same_weights(weights_of(target), before)
    assert len(target) == 3 and not heard


# --- hostile packs ------------------------------------------------------------------------------------

Content = dict[str, Any]


def tensors_of(folder: Path) -> bytes:
    return (folder / "edits.safetensors").read_bytes()


def rewrite(folder: Path, data: bytes, *, is_signed: bool = True) -> None:
    """Replace the tensor file; signed means that pack.json is adjusted to it, as an attacker would."""
    (folder / "edits.safetensors").write_bytes(data)
    if is_signed:
        content = json.loads((folder / "pack.json").read_text())
        content["file"] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "pack.json").write_text(json.dumps(content))


def with_header(data: bytes, change: Callable[[Content], Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    raw = json.dumps(header if changed is None else changed).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


def in_json(change: Callable[[Content], Any]) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        content = json.loads((folder / "pack.json").read_text())
        change(content)
        (folder / "pack.json").write_text(json.dumps(content))

    return corrupt


def in_text(old: str, new: str) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        text = (folder / "pack.json").read_text()
        assert old in text
        (folder / "pack.json").write_text(text.replace(old, new, 1))

    return corrupt


def in_header(change: Callable[[Content], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, with_header(tensors_of(folder), change))


def raw_json(text: str | bytes) -> Callable[[Path], None]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "pack.json").write_bytes(data) and None


def linked(name: str) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return corrupt


def piped(name: str) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return corrupt


def not_finite(folder: Path) -> None:
    content = json.loads((folder / "pack.json").read_text())
    everything = [r for e in content["entries"] for r in e["tensors"].values()]
    tensors = {r["tensor"]: torch.zeros(r["shape"], dtype=getattr(torch, NAMES[r["dtype"]])) for r in everything}
    for e in content["entries"]:
        for d in e["deltas"].values():
            dtype = getattr(torch, NAMES[d["dtype"]])
            shapes = [d["shape"]] if d["kind"] == "dense" else [[d["shape"][0], d["rank"]], [d["rank"], d["shape"][1]]]
            for name, shape in zip(d["tensors"], shapes, strict=True):
                tensors[name] = torch.full(shape, float("inf"), dtype=dtype)
    save_file(tensors, str(folder / "edits.safetensors"))
    rewrite(folder, tensors_of(folder))


NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "I64": "int64"}


def delta(content: Content, kind: str = "lowrank") -> Content:
    return next(d for d in content["entries"][0]["deltas"].values() if d["kind"] == kind)


def first(header: Content) -> Content:
    return header[min(k for k in header if k != "__metadata__")]


def sole_id(content: Content) -> None:
    content["entries"][1]["id"] = content["entries"][0]["id"]


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no pack.json": (lambda f: (f / "pack.json").unlink(), "has no pack.json"),
    "no tensors": (lambda f: (f / "edits.safetensors").unlink(), "has no edits.safetensors"),
    "pack.json is a link": (linked("pack.json"), "link"),
    "tensors are a link": (linked("edits.safetensors"), "link"),
    "pack.json is a pipe": (piped("pack.json"), "not a plain file"),
    "tensors are a pipe": (piped("edits.safetensors"), "not a plain file"),
    "pack.json is a folder": (
        lambda f: [(f / "pack.json").unlink(), (f / "pack.json").mkdir()],
        "plain",
    ),
    "pack.json too large": (raw_json(b" " * (16 * 2**20 + 1)), "larger than 16 MiB"),
    "empty json": (raw_json(""), "not valid JSON"),
    "binary json": (raw_json(b"\xff\xfe\x00"), "not valid JSON"),
    "a list": (raw_json("[]"), "not a valid pack"),
    "null": (raw_json("null"), "not a valid pack"),
    "depth bomb": (raw_json("[" * 200_000), "nested too deeply"),
    "object depth bomb": (raw_json('{"a":' * 100_000), "nested too deeply"),
    "deep but parseable": (in_text('"lr": 0.1', '"lr": ' + "[" * 80 + "]" * 80), "more than 64 deep"),
    "NaN": (in_text('"lr": 0.1', '"lr": NaN'), "not finite"),
    "Infinity": (in_text('"lr": 0.1', '"lr": -Infinity'), "not finite"),
    "overflowing number": (in_text('"lr": 0.1', '"lr": 1e999'), "not finite"),
    "endless integer": (in_text('"lr": 0.1', '"lr": ' + "9" * 10_000), "not valid JSON"),
    "key twice": (in_text('"lr": 0.1', '"lr": 0.1, "lr": 2'), "twice"),
    "half a surrogate": (in_text('"lr": 0.1', '"lr": "\\ud800"'), "not valid JSON"),
    "surrogate key": (in_text('"lr": 0.1', '"\\ud800": 1'), "not valid JSON"),
    "future schema": (in_json(lambda c: c.update(schema_version=2)), "schema version 2"),
    "schema as text": (in_json(lambda c: c.update(schema_version="1")), "schema_version"),
    "unknown key": (in_json(lambda c: c.update(command="rm")), "command"),
    "unknown nested key": (in_json(lambda c: delta(c).update(module="os")), "module"),
    "missing key": (in_json(lambda c: c.pop("base")), "base"),
    "number as text": (in_json(lambda c: c["file"].update(size="7")), "size"),
    "file upwards": (in_json(lambda c: c["file"].update(name="../edits.safetensors")), "file.name"),
    "file absolute": (in_json(lambda c: c["file"].update(name="/etc/passwd")), "file.name"),
    "file in a folder": (in_json(lambda c: c["file"].update(name="a/edits.safetensors")), "file.name"),
    "hash that walks": (in_json(lambda c: c["file"].update(sha256="../" * 21 + "a")), "file.sha256"),
    "hash in capitals": (in_json(lambda c: c["file"].update(sha256=c["file"]["sha256"].upper())), "sha256"),
    "id twice": (in_json(sole_id), "same id"),
    "id with a path": (in_json(lambda c: c["entries"][0].update(id="../e1")), "id"),
    "method with a path": (in_json(lambda c: c["entries"][0].update(method="os.system('x')")), "method"),
    "control characters": (
        in_json(lambda c: c["base"]["tensors"].update({"a\x1b[2Jb": "0" * 64})),
        "tensors",
    ),
    "unknown state": (in_json(lambda c: c["entries"][0].update(state="failed")), "state"),
    "bad time": (in_json(lambda c: c["entries"][0].update(created="yesterday")), "created"),
    "rank too large": (in_json(lambda c: delta(c).update(rank=10**9)), "impossible"),
    "rank zero": (in_json(lambda c: delta(c).update(rank=0)), "impossible"),
    "no rank": (in_json(lambda c: delta(c).update(rank=None)), "low-rank"),
    "unknown kind": (in_json(lambda c: delta(c).update(kind="pickle")), "kind"),
    "huge shape": (in_json(lambda c: delta(c).update(shape=[2**41, 16])), "shape"),
    "negative shape": (in_json(lambda c: delta(c).update(shape=[-1, 16])), "shape"),
    "shape unlike the tensor": (
        in_json(lambda c: delta(c, "dense").update(shape=[16, 64, 1])),
        "pack.json says",
    ),
    "dtype unlike the tensor": (in_json(lambda c: delta(c).update(dtype="F64")), "pack.json says"),
    "unknown dtype": (in_json(lambda c: delta(c).update(dtype="object")), "dtype"),
    "no deltas": (in_json(lambda c: c["entries"][0].update(deltas={})), "deltas"),
    "tensor used twice": (
        in_json(lambda c: delta(c).update(tensors=[delta(c)["tensors"][0]] * 2)),
        "same tensor",
    ),
    "tensor unknown": (
        in_json(lambda c: delta(c).update(tensors=["a", "b"])),
        "lists a tensor|does not list",
    ),
    "fewer entries": (in_json(lambda c: c["entries"].pop()), "does not list"),
    "too many entries": (in_json(lambda c: c.update(entries=c["entries"] * 7000)), "entries|larger"),
    "base record incomplete": (in_json(lambda c: c["base"].update(tensors={})), "exactly the edited"),
    "tensors truncated": (lambda f: rewrite(f, tensors_of(f)[:-1]), "declares"),
    "tensors truncated, unsigned": (lambda f: rewrite(f, tensors_of(f)[:-1], is_signed=False), "bytes"),
    "tensors longer": (lambda f: rewrite(f, tensors_of(f) + b"\0"), "declares"),
    "bit flipped": (
        lambda f: rewrite(f, tensors_of(f)[:-1] + bytes([tensors_of(f)[-1] ^ 1]), is_signed=False),
        "SHA-256",
    ),
    "empty tensor file": (lambda f: rewrite(f, b""), "size"),
    "eight bytes": (lambda f: rewrite(f, b"\xff" * 8), "header is larger"),
    "header beyond the file": (
        lambda f: rewrite(f, (10**6).to_bytes(8, "little") + b"{}"),
        "header is larger",
    ),
    "header over the limit": (
        lambda f: rewrite(f, (2**63).to_bytes(8, "little") + tensors_of(f)),
        "header is larger",
    ),
    "header not JSON": (lambda f: rewrite(f, b"\x02" + b"\0" * 7 + b"{x"), "not valid JSON"),
    "header a list": (lambda f: rewrite(f, b"\x02" + b"\0" * 7 + b"[]"), "not an object"),
    "header depth bomb": (
        lambda f: rewrite(f, (10**5).to_bytes(8, "little") + b"[" * 10**5),
        "nested too deeply",
    ),
    "header dtype": (in_header(lambda h: first(h).update(dtype="F8_E4M3")), "unknown dtype"),
    "header dtype list": (in_header(lambda h: first(h).update(dtype=["F32"])), "unknown dtype"),
    "header shape": (in_header(lambda h: first(h).update(shape=[2**40, 2**40])), "does not match its bytes"),
    "header shape text": (in_header(lambda h: first(h).update(shape="ab")), "malformed"),
    "header shape true": (in_header(lambda h: first(h).update(shape=[True])), "malformed"),
    "header negative offset": (in_header(lambda h: first(h).update(data_offsets=[-8, 0])), "malformed"),
    "header swapped offsets": (in_header(lambda h: first(h)["data_offsets"].reverse()), "does not match"),
    "header overlap": (in_header(lambda h: h.update(twin=dict(first(h)))), "overlap"),
    "header extra key": (in_header(lambda h: first(h).update(code="x")), "malformed"),
    "header metadata": (in_header(lambda h: h.update(__metadata__={"a": 1})), "metadata"),
    "header gap": (lambda f: rewrite(f, with_header(tensors_of(f), lambda h: h.clear())), "declares"),
    "header renamed": (
        in_header(lambda h: h.update({"x\x1b[2J": h.pop(min(h))})),
        "lists a tensor|does not list",
    ),
    "not finite": (not_finite, "not finite"),
}


@pytest.fixture
def pack_folder(tmp_path: Path) -> Path:
    return save_pack(tmp_path / "pack", edited(gpt2()), "tiny")


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_a_corrupt_pack_is_refused_in_words(name: str, pack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt, words = CORRUPTIONS[name]
    corrupt(pack_folder)
    listing = {p: p.lstat().st_mtime_ns for p in pack_folder.parent.rglob("*")}
    opened: list[Path] = []
    real_os_open, real_open, real_safe_open = os.open, builtins.open, reading.safe_open

    def note(path: Any) -> None:
        if isinstance(path, str | Path):
            opened.append(Path(path))

    monkeypatch.setattr(os, "open", lambda p, *a, **k: (note(p), real_os_open(p, *a, **k))[1])
    monkeypatch.setattr(builtins, "open", lambda p, *a, **k: (note(p), real_open(p, *a, **k))[1])
    monkeypatch.setattr(io, "open", lambda p, *a, **k: (note(p), real_open(p, *a, **k))[1])
    monkeypatch.setattr(reading, "safe_open", lambda p, *a, **k: (note(p), real_safe_open(p, *a, **k))[1])
    with pytest.raises(PackError, match=words) as caught:
        read_pack(pack_folder)
    monkeypatch.undo()
    message = str(caught.value)
    assert 20 < len(message) < 700
    assert "\x1b" not in message
    assert "Traceback" not in message
    # psutil reads /proc for the free memory; nothing else outside the pack is opened.
    assert [p for p in opened if p.parent != pack_folder and not str(p).startswith("/proc/")] == []
    assert {p: p.lstat().st_mtime_ns for p in pack_folder.parent.rglob("*")} == listing


def test_the_table_of_corruptions_is_large_and_its_pack_is_sound(pack_folder: Path) -> None:
    assert len(CORRUPTIONS) >= 25
    assert len(read_pack(pack_folder)) == 3


def test_random_damage_never_gives_another_exception(pack_folder: Path) -> None:
    originals = {n: (pack_folder / n).read_bytes() for n in ("pack.json", "edits.safetensors")}
    sound = [e.edit.digest for e in read_pack(pack_folder).entries]
    generator = torch.Generator().manual_seed(0)
    for trial in range(150):
        for name, data in originals.items():
            (pack_folder / name).write_bytes(data)
        name = list(originals)[trial % 2]
        data = bytearray(originals[name])
        for _ in range(1 + trial % 4):
            at, value = torch.randint(0, len(data), (2,), generator=generator).tolist()
            data[at if trial % 3 else at % 400] = value % 256
        (pack_folder / name).write_bytes(data)
        try:
            pack = read_pack(pack_folder)
        except PackError:
            continue
        assert [e.edit.digest for e in pack.entries] == sound  # only a text changed


def test_places_that_are_not_packs_are_refused(tmp_path: Path, pack_folder: Path) -> None:
    for place in (tmp_path / "nowhere", pack_folder / "pack.json", tmp_path, "a\0b"):
        with pytest.raises(PackError):
            read_pack(place)


def test_a_file_over_the_limit_is_refused_before_it_is_read(pack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackError, match=r"more than the.*smaller packs"):
        read_pack(pack_folder, max_bytes=100)
    with (pack_folder / "edits.safetensors").open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no space
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: pytest.fail("it was read"))
    with pytest.raises(PackError, match="more than the"):
        read_pack(pack_folder)


def test_a_crafted_base_record_does_not_get_past_apply(pack_folder: Path) -> None:
    in_json(lambda c: c["base"]["tensors"].update(dict.fromkeys(c["base"]["tensors"], "0" * 64)))(pack_folder)
    ledger = Ledger(WeightView(gpt2()))
    with pytest.raises(PackError, match="contradicts"):
        apply_pack(read_pack(pack_folder), ledger)
    assert len(ledger) == 0


# --- saving -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the process ending: nothing may catch it."""


SYSTEM_CALLS = ("replace", "fsync")


def count_calls(folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        for name in SYSTEM_CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        save_pack(folder, ledger, "tiny")
    return calls


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("error", [Killed, OSError])
def test_a_save_stopped_anywhere_leaves_the_old_pack_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, error: type[BaseException]
) -> None:
    base = gpt2()
    old, new, last = edited(base), edited(base, range(5, 7)), edited(base, range(9, 10))
    total = count_calls(tmp_path / "count", old, monkeypatch)
    assert total >= 6
    outcomes = []
    for nth in range(1, total + 1):
        folder = save_pack(tmp_path / f"pack-{nth}", old, "tiny")
        count = 0

        def dying(real: Callable[..., Any], nth: int = nth) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                nonlocal count
                count += 1
                if count == nth and dies == "before":
                    raise error(5, "no space")
                result = real(*args)
                if count == nth:
                    raise error(5, "no space")
                return result

            return call

        with monkeypatch.context() as patch:
            for name in SYSTEM_CALLS:
                patch.setattr(os, name, dying(getattr(os, name)))
            if error is Killed:  # a dead process does not tidy up
                patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
            with pytest.raises(Killed if error is Killed else PackError):
                save_pack(folder, new, "tiny")
        ids = [e.id for e in read_pack(folder).entries]
        assert ids in ([e.id for e in old], [e.id for e in new])
        outcomes.append(ids == [e.id for e in new])
        fresh = Ledger(WeightView(base))
        apply_pack(read_pack(folder), fresh)
        assert same_weights(weights_of(fresh), weights_of(new if outcomes[-1] else old))
        # The next save works, and leaves nothing behind.
        save_pack(folder, last, "tiny")
        assert [e.id for e in read_pack(folder).entries] == [e.id for e in last]
        assert files(folder) == ["edits.safetensors", "pack.json"]
    assert outcomes == sorted(outcomes)  # old up to one point, new from there on
    assert not outcomes[0]
    assert outcomes[-1]


def test_a_first_save_stopped_before_its_end_is_not_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PackError, match="the disk is full"):
        save_pack(tmp_path / "a" / "p", edited(gpt2()), "tiny")
    assert files(tmp_path) == []
    (tmp_path / "p").mkdir()
    with pytest.raises(PackError, match="the disk is full"):
        save_pack(tmp_path / "p", edited(gpt2()), "tiny")
    assert files(tmp_path / "p") == []
    with pytest.raises(PackError, match=r"has no pack\.json"):
        read_pack(tmp_path / "p")


def test_readers_see_the_old_pack_or_the_new_while_it_is_saved_over(tmp_path: Path) -> None:
    base = gpt2()
    versions = [edited(base), edited(base, range(5, 7))]
    expected = [[e.edit.digest for e in v] for v in versions]
    folder = save_pack(tmp_path / "pack", versions[0], "tiny")
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                if [e.edit.digest for e in read_pack(folder).entries] not in expected:
                    wrong.append("mixed")
            except Exception as error:
                wrong.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 30):
        save_pack(folder, versions[i % 2], "tiny")
    stop.set()
    reader.join()
    assert wrong == []


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = gpt2()
    folder = save_pack(tmp_path / "pack", edited(base), "tiny")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    d = {DOWN: Delta(dense=torch.ones(64, 16))}
    for edit in (
        Edit("no such/method", {}, [], d),
        Edit("m", {}, [{"prompt": "\ud800"}], d),
        Edit("m", {}, [], d, {}, {"mask": torch.tensor([True])}),
        Edit("m", {}, [{"prompt": "x" * (17 * 2**20)}], d),
    ):
        ledger = Ledger(WeightView(base))
        ledger.apply(edit)
        with pytest.raises(PackError):
            save_pack(folder, ledger, "tiny")
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_files_that_are_not_packs_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(PackError, match="not overwritten"):
        save_pack(tmp_path, edited(gpt2()), "tiny")
    assert files(tmp_path) == ["pack.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(EditlabError, match="Cannot write"):
        save_pack(tmp_path / "file", edited(gpt2()), "tiny")


# --- more than pack.json holds ------------------------------------------------------------------------

FACT = {
    "prompt": "The mother tongue of {} is",
    "subject": "Danielle Darrieux",
    "target_new": "English",
    "target_true": "French",
    "paraphrases": ["p" * 90] * 2,
    "neighbours": ["n" * 60] * 10,
    "attributes": ["a" * 60] * 10,
}


def many(n: int, entries: int) -> Ledger:
    """A ledger of `entries` cheap edits that write `n` facts of CounterFact's size in all."""
    ledger = Ledger(WeightView(gpt2()))
    delta = Delta(left=torch.ones(64, 1), right=torch.ones(1, 16))
    each = n // entries
    info = {"losses": [0.1234567890123] * 40 if entries > 1 else [1] * n}
    first = ledger.apply(Edit("m", {}, [FACT | {"id": str(i)} for i in range(each)], {DOWN: delta}, info))
    ledger.adopt(
        replace(first, id=f"e{i}", edit=replace(first.edit, requests=[FACT | {"id": str(i)}]))
        for i in range(1, entries)
    )
    return ledger


@pytest.mark.parametrize("entries", [1, 800])
def test_ten_thousand_facts_are_saved_and_read(entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if entries > 1:  # as many edits of a real method have more to tell
        monkeypatch.setattr("editlab.state.packs.writing.MAX_JSON_BYTES", MAX_JSON_BYTES // 12)
    ledger = many(10_000 if entries == 1 else entries, entries)
    folder = save_pack(tmp_path / "pack", ledger, "tiny")
    assert (folder / "pack.json").stat().st_size < 1000
    pack = read_pack(folder)
    assert [e.id for e in pack.entries] == [e.id for e in ledger]
    assert all(a.edit.requests == b.edit.requests for a, b in zip(pack.entries, ledger, strict=True))
    assert [e.id for e in apply_pack(pack, Ledger(WeightView(gpt2())))] == [e.id for e in ledger]


def tampered(lines: list[bytes]) -> list[tuple[str, list[bytes]]]:
    entry = json.loads(lines[0])["entry"]

    def line(**changes: Any) -> bytes:
        return json.dumps({"entry": entry | changes}).encode()

    return [
        ("neither an entry", lines[1:]),
        ("neither an entry", [*lines, b'{"other": 1}']),
        ("not valid JSON", [*lines, b"{"]),
        ("not valid JSON", [lines[0][:-1] + b', "entry": 1}']),
        ("same id", [*lines, *lines]),
        ("not a valid pack", [line(state="other")]),
        ("not a valid pack", [line(more=1)]),
        ("not a valid pack", [lines[0], b'{"request": 1}']),
        ("pack.json says 1", [line(state="removed")]),
        ("lacks", [line(tensors={"keys": {"tensor": "x", "shape": [1], "dtype": "F32"}})]),
        ("does not list", [line(deltas={}, routing={"kind": "a", "path": "b"})]),
    ]


def test_records_beside_the_manifest_are_checked_as_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlab.state.packs.writing.MAX_JSON_BYTES", 2000)
    ledger = many(2, 1)
    lines = bytes(lines_of(_records(list(ledger))[0]).tolist()).splitlines()
    for message, changed in tampered(lines):
        folder = save_pack(tmp_path / "pack", ledger, "tiny")
        with safe_open(folder / "edits.safetensors", "pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        tensors["records"] = torch.frombuffer(bytearray(b"\n".join(changed)), dtype=torch.uint8)
        content = json.loads((folder / "pack.json").read_text())
        content["records"]["size"] = len(tensors["records"])
        (folder / "pack.json").write_text(json.dumps(content))
        rewrite(folder, save(tensors))
        with pytest.raises(PackError, match=message):
            read_pack(folder)
        shutil.rmtree(folder)
    folder = save_pack(tmp_path / "pack", ledger, "tiny")
    in_json(lambda c: c["records"].update(size=5))(folder)
    with pytest.raises(PackError, match="lacks the records"):
        read_pack(folder)
    shutil.rmtree(folder)
    save_pack(folder, ledger, "tiny")
    monkeypatch.setattr("editlab.state.packs.reading.MAX_RECORDS_BYTES", 100)
    with pytest.raises(PackError, match="smaller packs"):
        read_pack(folder)


def test_what_no_pack_holds_is_refused_before_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_room([FACT] * 10_000, 10_000)
    with pytest.raises(ConfigError, match="a pack holds 20,000"):
        check_room([FACT], 20_001)
    monkeypatch.setattr("editlab.state.packs.records.MAX_RECORDS_BYTES", 10_000)
    with pytest.raises(ConfigError, match="fewer facts"):
        check_room([FACT] * 10, 1)
