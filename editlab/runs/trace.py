"""What causal tracing found, written to a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.probes.trace_results import Trace, TraceAverage
from editlab.runs.folder import write_table

if TYPE_CHECKING:
    from editlab.lm import LM


def write_trace(folder: Path, lm: LM, found: Trace | TraceAverage, asked: Mapping[str, Any]) -> Path:
    """Write the effects, their figure and a manifest.

    Args:
        asked: of a prompt its text, subject and answer; of facts their file and limit, if they came from one. It goes
            into `config.yaml`, so that passing that on traces the same again.
    """
    said: dict[str, Any] = {
        "headline": found.headline,
        "suggested_layers": list(found.suggestion.layers),
        "suggestion": found.suggestion.text,
    }
    if isinstance(found, Trace):
        said["asked"] = {name: asked.get(name) for name in ("prompt", "subject", "answer")}
    else:
        said["left_out"] = [{"fact": fact, "reason": reason} for fact, reason in found.left_out]
    config = found.config.model_dump(mode="json")
    return write_table(folder, lm, "locate", config, found.to_pandas(), said, {"effects": found.plot}, asked)
