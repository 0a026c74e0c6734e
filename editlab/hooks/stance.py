"""Running without torch.compile while a session is open: a compiled model ignores hooks added after its first call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_STANCE_LOCK = threading.Lock()
_STANCES: list[Any] = []  # one entry per open session; the first holds the stance


@contextmanager
def eager_stance() -> Iterator[None]:
    """torch.compile's stance is one for the whole process: the first session sets it, the last one puts it back."""
    with _STANCE_LOCK:
        _STANCES.append(torch.compiler.set_stance("force_eager") if not _STANCES else None)
        if len(_STANCES) == 1:
            _STANCES[0].__enter__()
    try:
        yield
    finally:
        with _STANCE_LOCK:
            stance = _STANCES.pop(1 if len(_STANCES) > 1 else 0)
            if stance is not None:
                stance.__exit__(None, None, None)
