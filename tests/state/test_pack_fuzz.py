"""Damaged packs: refused in a sentence, or applied exactly as their two files say; never anything else."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import BYTE_DAMAGE, TREE_DAMAGE, place
from safetensors import safe_open
from tiny_lm import make_lm

from editlab import LM
from editlab.errors import PackError
from editlab.memories.kinds import wise
from editlab.state.edit import Delta, Edit
from editlab.state.packs import apply_pack, read_pack, save_pack

FACT = {"prompt": "The capital of {} is", "subject": "Vinland", "target_new": "Rome", "target_true": "Oslo"}
Files = dict[str, bytes]  # by name


@pytest.fixture(scope="module")
def base() -> LM:
    return make_lm("llama", hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2)


@pytest.fixture(scope="module")
def sound(base: LM, tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """Packs of weights, of side memories, and of both."""
    g = torch.Generator().manual_seed(0)
    found = []
    for kinds in ("weights", "memories", "both"):
        lm = base.fork()
        if kinds != "memories":
            for form in ("dense", "low rank", "gain", "dense"):
                layer = int(form == "low rank")
                name = lm.adapter.down(lm.model, layer).name
                rows, columns = lm.model.get_parameter(name).shape
                left, right = torch.randn(rows, 2, generator=g), torch.randn(2, columns, generator=g)
                delta = {
                    "dense": Delta(dense=torch.randn(rows, columns, generator=g, dtype=torch.float64)),
                    "low rank": Delta(left=left, right=right),
                    "gain": Delta(left=1 + left[:, :1], right=torch.ones(1, columns), is_gain=True),
                }[form]
                lm.ledger.apply(Edit("ready", {"lr": 0.1}, [FACT], {name: delta}, {"loss": 1.0}))
            lm.undo(list(lm.ledger)[1].id)
        if kinds != "weights":
            lm.edit(FACT, "grace", layer=0, steps=2)
            lm.edit([FACT | {"subject": "Thule"}, FACT | {"subject": "Sparta"}], "grace", layer=0, steps=2)
            for number in range(3):
                lm.ledger.apply(wise_edit(lm, number))
        folder = save_pack(tmp_path_factory.mktemp(kinds), lm.ledger, lm.name)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    return found


def wise_edit(lm: LM, number: int) -> Edit:
    """One edit, in a shard of its own, of a WISE memory that merges every two."""
    layer = lm.adapter.n_layers - 1
    path, shape = lm.adapter.layers[layer].down, (lm.adapter.d_model, lm.adapter.d_mlp)
    g = torch.Generator().manual_seed(number)
    mask = wise.mask_of(shape, 0.2, 0, number)
    routing = wise.Routing(
        path=path, layer=layer, shard_size=1, merge_every=2, mode="merge", merge="ties", density=0.5,
        indicator="relative", ratio=0.9, seed=0, number=number, count=1,
    )  # fmt: skip
    tensors = {
        f"values.{number}": torch.randn(len(mask), generator=g),
        f"mask.{number}": wise.pack(mask, shape[0] * shape[1]),
        f"inputs.{number}": torch.randn(3, shape[1], generator=g),
        f"lengths.{number}": torch.tensor([3]),
    }
    return Edit("wise", {}, [FACT], {}, {"activation": "silu"}, tensors, routing.model_dump(mode="json"))


def bound(manifest: Any, tensors: bytes) -> bytes:
    """The manifest as JSON, with the size and hash of the tensor file: what somebody would do who means harm."""
    manifest["file"] |= {"size": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}
    return json.dumps(manifest).encode("utf-8", "surrogatepass")


def manifest_field(rng: random.Random, files: Files) -> Files:
    manifest = json.loads(files["pack.json"])
    for _ in range(rng.choice([1, 1, 2])):
        rng.choice(TREE_DAMAGE)(rng, manifest)
    return files | {"pack.json": json.dumps(manifest).encode("utf-8", "surrogatepass")}


def plausible_field(rng: random.Random, files: Files) -> Files:
    """A value of the right type: another state, order, parameter, shape or number."""
    manifest = json.loads(files["pack.json"])
    entry = rng.choice(manifest["entries"])
    kind = rng.randrange(6)
    if kind == 0:
        entry["state"] = rng.choice(["active", "removed"])
    elif kind == 1:
        rng.shuffle(manifest["entries"])
    elif kind == 2 and entry["deltas"]:
        old, new = next(iter(entry["deltas"])), rng.choice(["lm_head.weight", *manifest["base"]["tensors"], "nowhere"])
        entry["deltas"][new] = entry["deltas"].pop(old)
        names = {name for e in manifest["entries"] for name in e["deltas"]}
        some = "0" * 64
        manifest["base"]["tensors"] = {name: manifest["base"]["tensors"].get(name, some) for name in names}
    elif kind == 3:
        for _ in range(3):
            at, key = place(rng, entry)
            if isinstance(at[key], bool | int | float):
                at[key] = rng.choice([0, 1, -1, 2, 3, 16, 24, 2**40, 0.5, True])
            elif isinstance(at[key], list):
                rng.shuffle(at[key])
    elif kind == 4:
        manifest["entries"].append(copy.deepcopy(entry) | {"id": f"e{rng.randrange(99)}-abcd"})
    elif entry.get("routing"):
        at, key = place(rng, entry["routing"])
        other = rng.choice(manifest["entries"])
        at[key] = rng.choice(
            [at[key], 0, 1, 1e300, -1.0, "lm_head", "model.layers.1.mlp.down_proj", [0, 1], other["id"]]
        )
    return files | {"pack.json": bound(manifest, files["edits.safetensors"])}


def header_field(rng: random.Random, files: Files) -> Files:
    """The tensor file's own header, with a manifest that vouches for it."""
    raw = files["edits.safetensors"]
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    if rng.random() < 0.5:
        rng.choice(TREE_DAMAGE)(rng, header)
    else:
        at, key = place(rng, header)
        at[key] = rng.choice([0, 1, 2**47, "F16", "I64", "F8_E4M3", [0, 8], [8, 0], at[key]])
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    stated = rng.choice([len(text), len(text), len(text), 0, 2**63, len(raw)])
    tensors = struct.pack("<Q", stated) + text + raw[8 + length :]
    return {"edits.safetensors": tensors, "pack.json": bound(json.loads(files["pack.json"]), tensors)}


def numbers(rng: random.Random, files: Files) -> Files:
    """Other numbers, with a manifest that vouches for them."""
    raw = bytearray(files["edits.safetensors"])
    (length,) = struct.unpack("<Q", raw[:8])
    for _ in range(rng.choice([1, 8])):
        at = rng.randrange(8 + length, len(raw) - 4)
        raw[at : at + 4] = rng.choice(
            [struct.pack("<f", math.nan), struct.pack("<f", 1e38), rng.randbytes(4), b"\0" * 4]
        )
    tensors = bytes(raw)
    return {"edits.safetensors": tensors, "pack.json": bound(json.loads(files["pack.json"]), tensors)}


def broken_bytes(rng: random.Random, files: Files) -> Files:
    name = rng.choice(list(files))
    return files | {name: rng.choice(BYTE_DAMAGE)(rng, files[name])}


def broken_and_bound(rng: random.Random, files: Files) -> Files:
    tensors = rng.choice(BYTE_DAMAGE)(rng, files["edits.safetensors"])
    return {"edits.safetensors": tensors, "pack.json": bound(json.loads(files["pack.json"]), tensors)}


def missing(rng: random.Random, files: Files) -> Files:
    lost = rng.choice(list(files))
    return {name: data for name, data in files.items() if name != lost}


DAMAGE: list[Callable[[random.Random, Files], Files]] = [
    manifest_field, manifest_field, manifest_field, plausible_field, plausible_field, plausible_field, header_field,
    header_field, numbers, broken_bytes, broken_and_bound, missing,
]  # fmt: skip


def told_by(folder: Path, base: LM) -> dict[str, torch.Tensor]:
    """The weights that the two files ask for, worked out from them alone."""
    manifest = json.loads((folder / "pack.json").read_bytes())
    totals: dict[str, torch.Tensor] = {}
    deltas = [item for e in manifest["entries"] if e["state"] == "active" for item in e["deltas"].items()]
    with safe_open(folder / "edits.safetensors", framework="pt") as tensors:
        for name, delta in sorted(deltas, key=lambda item: item[1]["kind"] == "gain"):  # gains last
            parts = [tensors.get_tensor(t).double() for t in delta["tensors"]]
            part = parts[0] @ parts[1] if len(parts) == 2 else parts[0]
            total = totals.setdefault(name, base.model.get_parameter(name).detach().double())
            totals[name] = total * part if delta["kind"] == "gain" else total + part
    return totals


@pytest.mark.parametrize(("seed", "variants"), [(0, 400), pytest.param(1, 10_000, marks=pytest.mark.model)])
def test_damaged_packs(seed: int, variants: int, base: LM, sound: list[Files], tmp_path: Path) -> None:
    rng = random.Random(seed)
    batch = base.encode(["The capital of Vinland is", "An inn"])
    lm = base.fork()
    refused = applied = 0
    for i in range(variants):
        damage = rng.choice(DAMAGE)
        files = damage(rng, rng.choice(sound))
        told = f"variant {i}, {damage.__name__}"
        for path in tmp_path.iterdir():
            path.unlink()
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        try:
            entries = apply_pack(read_pack(tmp_path), lm.ledger)
        except PackError as error:
            refused += 1
            assert error.what and len(str(error)) < 1200, told
            assert str(error).isprintable(), told
            assert not len(lm.ledger) and lm.state_hash == base.base_hash, told
            continue
        applied += 1
        asked = told_by(tmp_path, base)
        for name, parameter in lm.model.named_parameters():
            expected = asked.get(name, base.model.get_parameter(name)).float()
            assert torch.allclose(parameter, expected, rtol=1e-6, atol=1e-6), (told, name)
        assert bool(torch.isfinite(lm.forward(batch)).all()) or damage is numbers, told
        assert [e.id for e in entries] == [e.id for e in lm.ledger], told
        lm.ledger.clear()
        assert lm.state_hash == base.base_hash, told
    assert refused + applied == variants
    assert refused > 0.5 * variants and applied > 0.05 * variants
