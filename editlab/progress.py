"""How long work says where it is.

The library never prints. A caller that wants to show progress passes `on_step`; the terminal, Streamlit
and Jupyter each draw it their own way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepInfo:
    """One report of a running job.

    Attributes:
        task: what is being done, in words ("covariance of layer 5").
        done: units finished so far.
        total: units in all, or None when unknown.
        unit: what a unit is ("tokens", "steps", "bytes").
        note: anything worth showing beside the bar ("loss 0.31").
    """

    task: str
    done: int
    total: int | None = None
    unit: str = "steps"
    note: str = ""


OnStep = Callable[[StepInfo], None]


def silent(step: StepInfo) -> None:
    """The default: show nothing."""
