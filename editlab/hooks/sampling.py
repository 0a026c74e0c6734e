"""Random numbers for sampling that do not depend on who else draws some.

`model.generate` draws from the process's one generator per device. So whoever samples here does it in turn, and a
series that is to be the same each time is drawn from a generator of its own, put in the place of that one meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TURN = threading.RLock()


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """While open, torch's random numbers come from `generator`, which goes on from where it stands; others wait.

    Args:
        generator: on the device that is drawn on; None draws from torch's own.
    """
    with _TURN:
        if generator is None:
            yield
            return
        device = generator.device
        shared: Any = torch if device.type == "cpu" else getattr(torch, device.type)
        which = (device,) if device.type == "cuda" else ()
        before = shared.get_rng_state(*which)
        shared.set_rng_state(generator.get_state(), *which)
        try:
            yield
        finally:
            generator.set_state(shared.get_rng_state(*which))
            shared.set_rng_state(before, *which)
