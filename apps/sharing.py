"""What differs when several people use one server: none of its folders is named to them."""

from __future__ import annotations

import os
import re

# A path of at least two parts, from the root or from a drive; its last part stays.
_FOLDERS = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s'\"]+)*[/\\](?=[^/\\\s'\"]+)")


def is_shared() -> bool:
    """Started with `--shared`."""
    return os.environ.get("EDITLAB_APP_SHARED") == "1"


def shareable(text: str) -> str:
    """The text as others may see it: paths cut down to their last part on a shared server."""
    return _FOLDERS.sub("", text) if is_shared() else text
