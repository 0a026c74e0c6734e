"""The ledger: edits in order, each of which can be undone on its own.

The weights of a view are a function of its ledger, for every parameter W:

    W = cast((W_base in float64 + sum of the active deltas, in ledger order, in float64) * active gains; dtype of W)

1. They are always recomputed from the base and never subtracted, so a ledger without active entries is equal
   to the base in every bit (it shares its tensors again), and the order of undoing does not matter.
2. A change is all or nothing: values are computed and checked for every parameter before any is written.
   Gains (pruned heads) come after all that is added, so a head stays pruned whatever is written into it, before or
   after, and two entries that prune one head are undone in any order.
3. An edit after which every weight equals what it was is refused: nothing happened, so nothing is recorded.

Edits with a routing are no part of that sum: those that are active make up the view's side memories, which are likewise
built afresh from them at each change (`editlab.memories`).

Undoing an entry keeps the later ones. They were solved on a state that is now gone, which
`Entry.solved_elsewhere` says; solving them again is the caller's to drive (`Ledger.replace`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch import Tensor

from editlab.display import html_table
from editlab.errors import EditFailed, EditlabError, UnknownName, did_you_mean
from editlab.hooks.placement import device_for
from editlab.memories import build, digest_of, weights
from editlab.state.edit import Delta, Edit
from editlab.state.weights import WeightView

State = Literal["active", "removed"]


@dataclass(frozen=True, eq=False)
class Entry:
    """An edit in a ledger, as it stood when it was asked for (`ledger[id]` gives it as it stands now).

    Attributes:
        id: short and unique in its ledger, such as "e1-3fa9".
        created: UTC time, ISO 8601.
        edit: the change.
        state: "active", or "removed" (kept, so that it can be redone).
        base_hash: the base it was solved on.
        parent_state_hash: content hash of the weights it was solved on.
        parent_lineage: hash of that base and of the edits active below it then; cheap to compare.
        solved_elsewhere: the edits active below it are no longer those it was solved on.
    """

    id: str
    created: str
    edit: Edit
    state: State
    base_hash: str
    parent_state_hash: str
    parent_lineage: str
    solved_elsewhere: bool = False

    @property
    def is_active(self) -> bool:
        """Whether its deltas are in the weights."""
        return self.state == "active"

    def to_record(self) -> dict[str, Any]:
        """One table row of plain values."""
        deltas = self.edit.deltas
        return {
            "id": self.id,
            "state": self.state,
            "method": self.edit.method,
            "what": self.edit.summary,
            "requests": len(self.edit.requests),
            "parameters": ", ".join(deltas)
            if self.edit.routing is None
            else f"{self.edit.routing['path']} (side memory)",
            "norm": math.hypot(*(d.norm() for d in deltas.values())),
            "solved_elsewhere": self.solved_elsewhere,
            "created": self.created,
        }

    def __str__(self) -> str:
        row = self.to_record()
        note = ", solved on another state" if self.solved_elsewhere else ""
        return f"{self.id} {row['method']} ({self.state}{note}): {row['what']}, norm {row['norm']:.4g}"

    def _repr_html_(self) -> str:
        return _html_table([self])


class Ledger:
    """Edits of one view, in order. Iterating gives the entries, oldest first.

    The ledger is the only writer of its view.

    >>> entry = ledger.apply(edit)
    >>> ledger.remove(entry.id)
    >>> ledger.redo(entry.id)
    """

    def __init__(self, view: WeightView) -> None:
        self.view = view
        self._entries: list[Entry] = []
        self._next = 1

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries))

    def __contains__(self, entry_id: object) -> bool:
        return any(e.id == entry_id for e in self._entries)

    def __getitem__(self, entry_id: str) -> Entry:
        return self._entries[self._find(entry_id)]

    @property
    def active(self) -> list[Entry]:
        """The entries that are in the weights, in order."""
        return [e for e in self._entries if e.is_active]

    def to_records(self) -> list[dict[str, Any]]:
        """The rows of a table."""
        return [e.to_record() for e in self]

    def __repr__(self) -> str:
        lines = "".join(f"\n  {e}" for e in self)
        return f"Ledger({len(self.active)} of {len(self)} edits active){lines}"

    def _repr_html_(self) -> str:
        return _html_table(list(self))

    # changes

    def apply(self, edit: Edit) -> Entry:
        """Add an edit on top.

        Raises:
            UnknownName: a delta is for a parameter that the model lacks.
            EditFailed: the edit changes no weight, is not finite, or overflows the weights' dtype.
            EditlabError: a delta's shape is wrong, or the parameter cannot be edited.
        """
        with self.view.lock:
            edit = self._checked(edit)
            entry_id, number = self._fresh_id(edit)
            entry = self._entry(entry_id, edit, below=self.active)
            self._commit([*self._entries, entry], edit.deltas, must_change=entry_id)
            self._next = number + 1
            return self[entry_id]

    def remove(self, entry_id: str) -> Entry:
        """Take an active entry out of the weights; later entries stay.

        Raises:
            UnknownName: no active entry has this id.
        """
        return self._switch(entry_id, "active", "removed")

    def redo(self, entry_id: str) -> Entry:
        """Put a removed entry back, in its old place.

        Raises:
            UnknownName: no removed entry has this id.
        """
        return self._switch(entry_id, "removed", "active")

    def replace(self, entry_id: str, edit: Edit) -> Entry:
        """Put another edit in an entry's place, active: the second half of remove-and-replay.

        It counts as solved on the active entries below it.

        Raises:
            UnknownName: no entry has this id.
            EditlabError, EditFailed: as in `apply`.
        """
        with self.view.lock:
            at = self._find(entry_id)
            old, edit = self._entries[at], self._checked(edit)
            below = [e for e in self._entries[:at] if e.is_active]
            entries = [*self._entries[:at], self._entry(entry_id, edit, below), *self._entries[at + 1 :]]
            touched = dict.fromkeys([*old.edit.deltas, *edit.deltas])
            self._commit(entries, touched, must_change=entry_id)
            return self[entry_id]

    def adopt(self, entries: Iterable[Entry]) -> list[Entry]:
        """Append entries made elsewhere (a pack, a run), with their ids and states; all or none.

        Raises:
            EditlabError: an id is taken, or a delta does not fit, as in `apply`.
        """
        with self.view.lock:
            new = [replace(e, edit=self._checked(e.edit)) for e in entries]
            taken = {e.id for e in self._entries}
            for e in new:
                if e.id in taken:
                    raise EditlabError(
                        f"The ledger already has an entry '{e.id}'.", "Use a fork of the unedited model."
                    )
                taken.add(e.id)
            touched = dict.fromkeys(name for e in new if e.is_active for name in e.edit.deltas)
            self._commit([*self._entries, *new], touched)
            numbers = [int(m[1]) for e in new if (m := re.match(r"e(\d{1,9})-", e.id))]
            self._next = max([self._next, *(n + 1 for n in numbers)])
            return [self[e.id] for e in new]

    def restore(self, entries: Iterable[Entry]) -> None:
        """Go back to entries that this ledger held before, with their states and what they were solved on."""
        with self.view.lock:
            before = list(entries)
            self._commit(before, dict.fromkeys(n for e in [*self._entries, *before] for n in e.edit.deltas))

    def clear(self) -> None:
        """Forget every entry; the weights are the base's own again."""
        with self.view.lock:
            self._commit([], dict.fromkeys(name for e in self._entries for name in e.edit.deltas))

    def fork(self, view: WeightView) -> Ledger:
        """The same entries on another view of the same base; independent from then on.

        Raises:
            EditlabError: the view is of another base.
        """
        with self.view.lock:
            twin = Ledger(view)
            twin._next = self._next
            names = self.view.names()
            shares = names == view.names() and all(view.base(n) is self.view.base(n) for n in names)
            if not shares and view.base_hash != self.view.base_hash:  # hashing reads every weight
                raise EditlabError("The other view is of another base model.", "Use view.fork().")
            with view.lock:
                touched = dict.fromkeys([*view.edited, *(n for e in self._entries for n in e.edit.deltas)])
                twin._commit(list(self._entries), touched)
            return twin

    # inside

    def _find(self, entry_id: str, state: State | None = None) -> int:
        known = {e.id: i for i, e in enumerate(self._entries) if state in (None, e.state)}
        if entry_id in known:
            return known[entry_id]
        what = f"No {state or ''} entry '{entry_id}' in the ledger.".replace("  ", " ")
        hint = did_you_mean(str(entry_id), list(known)) if known else f"It has no {state or ''} entries."
        raise UnknownName(what, hint.replace("  ", " "))

    def _switch(self, entry_id: str, before: State, after: State) -> Entry:
        with self.view.lock:
            at = self._find(entry_id, before)
            entries = list(self._entries)
            entries[at] = replace(entries[at], state=after)
            self._commit(entries, entries[at].edit.deltas)
            return self[entry_id]

    def _fresh_id(self, edit: Edit) -> tuple[str, int]:
        number = self._next
        while f"e{number}-{edit.digest[:4]}" in self:
            number += 1
        return f"e{number}-{edit.digest[:4]}", number

    def _entry(self, entry_id: str, edit: Edit, below: Sequence[Entry]) -> Entry:
        """A new active entry that was solved on the state with only `below` active."""
        is_current = [e.id for e in below] == [e.id for e in self.active]
        touched = dict.fromkeys(name for e in below for name in e.edit.deltas)
        return Entry(
            id=entry_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            edit=edit,
            state="active",
            base_hash=self.view.base_hash,
            parent_state_hash=(
                self.view.current_hash
                if is_current
                else self.view.hash_with(
                    {name: self._weight(name, below) for name in touched}, digest_of(_routed(below))
                )
            ),
            parent_lineage=_lineages(self.view.base_hash, below)[-1],
        )

    def _checked(self, edit: Edit) -> Edit:
        """The edit under first names, after checking that each delta fits its parameter."""
        deltas: dict[str, Delta] = {}
        for given, delta in edit.deltas.items():
            name = self.view.resolve(given)
            if name in deltas:
                raise EditlabError(f"The edit changes '{name}' under two names.", "Add the two deltas up first.")
            if delta.shape != tuple(self.view.base(name).shape):
                raise EditlabError(
                    f"The delta for '{given}' has shape {delta.shape}, "
                    f"the parameter {tuple(self.view.base(name).shape)}.",
                    "Give it in the parameter's stored layout (GPT-2's Conv1D stores (in, out)).",
                )
            if not delta.is_finite:
                raise EditFailed(
                    f"The edit by {edit.method} is not finite at '{given}'; nothing was changed.",
                    "The optimiser diverged or the statistics are singular: lower the learning rate "
                    "or raise the regularisation.",
                )
            deltas[name] = delta
        return edit if list(deltas) == list(edit.deltas) else replace(edit, deltas=deltas)

    def _weight(self, name: str, active: Sequence[Entry]) -> Tensor | None:
        """The value of one parameter under these entries; None when none of them touches it."""
        deltas = [e.edit.deltas[name] for e in active if name in e.edit.deltas]
        base = self.view.base(name)
        if not deltas or base.device.type == "meta":
            return base if deltas else None  # the view refuses an offloaded weight in its own words
        with torch.inference_mode(False), torch.no_grad():
            total = base.detach().to(device_for(torch.float64, base.device), torch.float64, copy=True).contiguous()
            for delta in sorted(deltas, key=lambda d: d.is_gain):
                delta.apply_to(total)
            return total.to(base.device, base.dtype)

    def _commit(self, entries: list[Entry], touched: Iterable[str], must_change: str = "") -> None:
        """Make `entries` the ledger and the weights theirs, or raise and leave both as they were.

        Args:
            touched: the parameters whose value may be another one. must_change: id of an entry that must change some.
        """
        active = [e for e in entries if e.is_active]
        values = {name: self._weight(name, active) for name in touched}
        edit = next((e.edit for e in active if e.id == must_change), None)
        if edit is not None and edit.routing is None:
            without = [e for e in active if e.id != must_change]
            if all(self._is_same(name, values[name], without) for name in values):
                raise EditFailed(
                    f"The edit changed no weights: what {edit.method} would add is zero, "
                    "or too small for the weights' dtype.",
                    "Check the request, or load the model in float32.",
                )
        old, routed, routes = self._entries, _routed(active), self.view.routes
        try:
            self._entries = self._with_flags(entries)
            layers = build(self.view.model, routed)
            self.view.write_all(values)
        except BaseException:
            self._entries = old
            raise
        if layers or routes.layers:
            changed = dict.fromkeys([*weights(routes.layers), *weights(layers)])
            routes.set(layers, digest_of(routed))
            self.view.announce(tuple(changed))

    def _is_same(self, name: str, value: Tensor | None, without: Sequence[Entry]) -> bool:
        base = self.view.base(name)
        if base.device.type == "meta":
            return False  # the view is about to refuse it
        other = self.view.current(name) if without == self.active else self._weight(name, without)
        return torch.equal(base if value is None else value, base if other is None else other)

    def _with_flags(self, entries: list[Entry]) -> list[Entry]:
        if not entries:
            return []
        lineages = _lineages(self.view.base_hash, entries)
        return [
            replace(e, solved_elsewhere=e.parent_lineage != below) for e, below in zip(entries, lineages, strict=False)
        ]


def _routed(entries: Iterable[Entry]) -> list[Edit]:
    """The edits that are parts of side memories."""
    return [e.edit for e in entries if e.edit.routing is not None]


def _lineages(base_hash: str, entries: Sequence[Entry]) -> list[str]:
    """For each entry the hash of the base and the active edits below it, and one more for the top."""
    digest = hashlib.sha256(base_hash.encode())
    below = [digest.hexdigest()]
    for e in entries:
        if e.is_active:
            digest.update(e.edit.digest.encode())
        below.append(digest.hexdigest())
    return below


def _html_table(entries: Sequence[Entry]) -> str:
    if not entries:
        return "<p>No edits: the weights are the base model's.</p>"
    head = ("id", "state", "method", "what", "parameters", "norm", "created")
    rows = []
    for e in entries:
        record = e.to_record()
        record["norm"] = f"{record['norm']:.4g}"
        if e.solved_elsewhere:
            record["state"] += " (solved on another state)"
        rows.append([record[c] for c in head])
    return html_table(head, rows)
