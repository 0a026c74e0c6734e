"""What a click on a row of a table does: it sets the widget that says the same."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any


def take_row(state: MutableMapping[Any, Any], table: str, target: str, values: Sequence[str]) -> bool:
    """Give the widget `target` the value of the row that was clicked in `table`; whether there was one."""
    rows = state[table]["selection"]["rows"]
    if not rows:
        return False
    state[target] = values[rows[0]]
    return True
