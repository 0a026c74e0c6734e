"""Taking an edit out of the middle of a sequence: the later ones are solved again on the state without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.data.formats import read_fact
from editlab.edits.engine import engine

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.progress import OnStep
    from editlab.state.ledger import Entry


def undo_and_replay(lm: LM, id: str, on_step: OnStep) -> Entry:
    """Take entry `id` back and solve the active ones after it again, in order; all or nothing.

    Entries without requests (pruned heads) rest on no state and are put back as they were.
    """
    before = list(lm.ledger)
    removed = lm.ledger.remove(id)
    try:
        ids = [e.id for e in before]
        later = [e for e in lm.ledger.active if ids.index(e.id) > ids.index(id)]
        for e in later:
            lm.ledger.remove(e.id)
        for e in later:
            edit = e.edit
            if edit.requests:
                facts = [read_fact(row) for row in edit.requests]
                edit = engine(lm, edit.method, edit.config)(facts, on_step)
            lm.ledger.replace(e.id, edit)
    except BaseException:
        lm.ledger.restore(before)
        raise
    return removed
