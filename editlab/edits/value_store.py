"""Optimised values, kept: the same target on the same weights with the same settings is never optimised twice.

A value depends on the weights as they are (their hash), the layer, the rows of tokens (fact and contexts in one), and
the settings of the optimiser; on nothing of the method, the batch, or the process. So methods and batch sizes that ask
for the same value share it, and so do a run and its continuation. Values of one batch are written in one transaction.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
import torch

from editlab.edits.values import Target, Value, ValueSettings, optimise_all
from editlab.models.cache import cache_root
from editlab.progress import OnStep, silent
from editlab.state.files import cause_told

if TYPE_CHECKING:
    from editlab.lm import LM

_TABLE = "CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, delta BLOB NOT NULL, record TEXT NOT NULL)"
_FIELDS = ("steps", "lr", "clamp", "decay", "kl_factor", "stop_loss")
_unused: ContextVar[bool] = ContextVar("the store is not used", default=False)


@contextmanager
def afresh() -> Iterator[None]:
    """Within it, this thread optimises every value that it asks for, and keeps none: what it takes can be timed."""
    token = _unused.set(True)
    try:
        yield
    finally:
        _unused.reset(token)


def values_of(
    lm: LM, layer: int, targets: Sequence[Target], settings: ValueSettings, on_step: OnStep = silent
) -> list[Value]:
    """One shift per target, from the store or optimised now.

    Raises:
        EditFailed: a loss is not finite.
    """
    if _unused.get():
        return optimise_all(lm, layer, targets, settings, on_step)
    keys = [_key(lm, layer, target, settings) for target in targets]
    known = _read(keys)
    missing = [i for i, key in enumerate(keys) if key not in known]

    def keep(found: Mapping[int, Value]) -> None:
        _write({keys[missing[i]]: value for i, value in found.items()})

    fresh = optimise_all(lm, layer, [targets[i] for i in missing], settings, on_step, keep=keep)
    new = dict(zip(missing, fresh, strict=True))
    return [new[i] if i in new else known[key] for i, key in enumerate(keys)]


def _key(lm: LM, layer: int, target: Target, settings: ValueSettings) -> str:
    rows = [[r.ids, r.index, r.reads, r.targets] for r in (*target.rows, *([target.essence] if target.essence else []))]
    # The reference states differ in their last bits with the batch that they were computed in.
    length = f"{float(target.reference.norm()):.4g}"
    chosen = {name: getattr(settings, name) for name in _FIELDS}
    if settings.steps_on_top:
        chosen["steps_on_top"] = settings.steps_on_top
    what = [lm.state_hash, str(lm.device.type), layer, rows, target.essence is None, length, chosen]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    """The store for one transaction, which an error takes back.

    Raises:
        WriteFailed: the system does not let it be written.
    """
    path = cache_root() / "values.sqlite"
    with cause_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()  # SQLite would make it for others to read only, whatever the umask
        try:
            with closing(sqlite3.connect(path, timeout=60)) as db, db:
                db.execute(_TABLE)
                yield db
        except sqlite3.OperationalError as error:
            raise OSError(str(error)) from error


def _read(keys: Sequence[str]) -> dict[str, Value]:
    found = {}
    with _opened() as db:
        for key in dict.fromkeys(keys):
            row = db.execute("SELECT delta, record FROM value WHERE key = ?", (key,)).fetchone()
            if row is not None:
                delta = torch.from_numpy(np.frombuffer(row[0], dtype=np.float32).copy())
                record = json.loads(row[1])
                # It took no time now.
                found[key] = Value(delta, tuple(record["losses"]), tuple(record["nlls"]), record["clamped"], 0.0)
    return found


def _write(values: Mapping[str, Value]) -> None:
    rows = [
        (
            key,
            value.delta.detach().cpu().numpy().astype(np.float32).tobytes(),
            json.dumps({"losses": value.losses, "nlls": value.nlls, "clamped": value.clamped}),
        )
        for key, value in values.items()
    ]
    with _opened() as db:
        db.executemany("INSERT OR IGNORE INTO value VALUES (?, ?, ?)", rows)
