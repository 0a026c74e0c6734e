"""What channels between heads were found, and what they do, written to run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.runs.folder import write_table

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM
    from editlab.probes.channels.parts import Part
    from editlab.probes.channels.scan import Scan
    from editlab.probes.channels.steering import Config, Steering
    from editlab.probes.channels.verdicts import Verdicts

KIND = "channels"


def write_scan(folder: Path, lm: LM, found: Scan, rows: pd.DataFrame) -> Path:
    """Write the scores in `rows`, a map of each mode and a manifest."""
    config = found.config.model_dump(mode="json")
    plots = {f"scan-{mode}": partial(found.plot, mode) for mode in found.config.modes}
    return write_table(folder, lm, KIND, config, rows, {"headline": found.headline}, plots)


def write_verdicts(folder: Path, lm: LM, found: Verdicts, prompts: Mapping[str, Any]) -> Path:
    """Write what interventions did, their figure and a manifest.

    Args:
        prompts: what they were made from: the task, how many, and their length.
    """
    config = {**found.config, **prompts}
    said = {"headline": found.headline}
    return write_table(folder, lm, KIND, config, found.to_pandas(), said, {"effects": found.plot})


def write_steering(folder: Path, lm: LM, found: Steering, parts: Sequence[Part], config: Config) -> Path:
    """Write what steering list recall with `parts` did, their chart and a manifest."""
    asked = {**config.model_dump(mode="json"), "parts": [str(part) for part in parts]}
    said = {"headline": found.headline}
    return write_table(folder, lm, KIND, asked, found.to_pandas(), said, {"places": found.plot})
