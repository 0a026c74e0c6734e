"""A probe of prompts, written to a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.progress import OnStep, silent
from editlab.runs.folder import write_table

if TYPE_CHECKING:
    from editlab.lm import LM
    from editlab.probes.result import ProbeResult


def run_probe(
    lm: LM, prompts: Sequence[str], name: str, settings: Mapping[str, Any], folder: Path, on_step: OnStep = silent
) -> ProbeResult:
    """Run a probe and write its rows, its figure (where plotly is installed) and a manifest.

    Raises:
        UnknownName: there is no such probe. ConfigError: a setting is invalid, or there is no prompt.
    """
    found = lm.probe(prompts, name, on_step=on_step, **settings)
    config = {"probe": name, "settings": dict(settings), "prompts": list(prompts)}
    write_table(folder, lm, "probe", config, found.to_pandas(), {"headline": found.headline}, {name: found.plot})
    return found
