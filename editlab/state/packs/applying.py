"""Putting a pack's edits on a model."""

from __future__ import annotations

from editlab.errors import EditlabError, PackError
from editlab.state.ledger import Entry, Ledger
from editlab.state.packs.manifest import shown
from editlab.state.packs.reading import Pack


def apply_pack(pack: Pack, ledger: Ledger, *, force: bool = False) -> list[Entry]:
    """Append a pack's entries to a ledger, with their ids, times and states; all or none.

    Args:
        pack: from `read_pack`.
        ledger: of a view of the base the pack was made for.
        force: go on although the base differs; the shapes must still fit.

    Raises:
        PackError: the base is another one, an id is taken, or a delta does not fit.
    """
    view, base = ledger.view, pack.manifest.base
    if not force and view.base_hash != base.base_hash:
        here = getattr(getattr(view.model, "config", None), "name_or_path", "") or type(view.model).__name__
        raise PackError(
            f"This pack was made for {shown(base.name)} (hash {base.base_hash[:12]}), "
            f"the model here is {shown(str(here))} (hash {view.base_hash[:12]}).",
            "Load that model, in the dtype in which the edits were made.",
        )
    try:
        for name, sha in base.tensors.items():
            if not force and view.base_sha256(name) != sha:
                raise PackError(f"The pack's hash of {shown(name)} contradicts its base.", "Get the pack again.")
        return ledger.adopt(pack.entries)
    except PackError:
        raise
    except EditlabError as error:
        raise PackError(f"The pack does not fit this model. {error.what}", error.fix) from error
