"""Progress in a notebook: a line with a bar under the running cell, updated in place and gone at the end.

lm.locate(prompt, subject, on_step=progress())
"""

from __future__ import annotations

import html
import time
from typing import Any

from editlab.errors import ConfigError
from editlab.progress import OnStep, StepInfo

EVERY = 0.2  # seconds between updates


def progress() -> OnStep:
    """What long calls take as `on_step`.

    Raises:
        ConfigError: IPython is not there.
    """
    try:
        from IPython.display import display
    except ImportError:
        raise ConfigError("There is no notebook here: IPython is not installed.", "Leave on_step out.") from None
    began: dict[str, float] = {}
    shown: dict[str, Any] = {}
    latest = 0.0

    def on_step(step: StepInfo) -> None:
        nonlocal latest
        now = time.monotonic()
        began.setdefault(step.task, now)
        is_last = step.total is not None and step.done >= step.total
        if now - latest < EVERY and not is_last:
            return
        latest = now
        line = _Line("" if is_last else _text(step, now - began[step.task]))
        if is_last:
            began.pop(step.task)
        if "line" in shown:
            shown["line"].update(line)
        elif not is_last:
            shown["line"] = display(line, display_id=True)

    return on_step


def _text(step: StepInfo, seconds: float) -> str:
    task, note = html.escape(step.task), html.escape(step.note)
    if not step.total:
        return f"{task}: {step.done} {step.unit} {note}"
    left = f", about {seconds * (step.total - step.done) / step.done:.0f} s left" if step.done else ""
    bar = f'<progress value="{step.done}" max="{step.total}"></progress>'
    return f"{task} {bar} {step.done} of {step.total} {step.unit}{left} {note}"


class _Line:
    """Shown as HTML where that can be, else as text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        import re

        return re.sub(r"<[^>]+>", "", self.text)
