"""Run folders: what was done, with what, and what came out.

A folder has `manifest.json`, `config.yaml` and `results.parquet`. The folder of a run that edited is an edit pack
(`pack.json`, `edits.safetensors`) too, so whatever takes a pack takes a run.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.errors import ConfigError, WriteFailed
from editlab.jsonable import finite
from editlab.report import EditReport
from editlab.state.files import filled_or_removed, write_json, write_text, write_whole
from editlab.viz.files import save_figures

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from editlab.evaluation.results import Evaluation
    from editlab.lm import LM
    from editlab.runs.measure import FailedRow


def run_folder(kind: str, base_hash: str, root: Path = Path("runs")) -> Path:
    """A fresh folder name: time, kind, and the base's short hash."""
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{kind}-{base_hash[:6]}"
    path, n = root / stem, 1
    while path.exists():
        n += 1
        path = root / f"{stem}-{n}"
    return path


def write_run(
    folder: Path,
    lm: LM,
    kind: str,
    config: Mapping[str, Any],
    reports: Sequence[EditReport],
    failed: Sequence[FailedRow] = (),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the results of edits, and the ledger as a pack; the manifest comes last.

    Args:
        extra: goes into the manifest, over what is there by default.

    Raises:
        PackError, WriteFailed: the system does not let it be written; what was not in the folder before is removed.
    """
    with filled_or_removed(folder):
        _write_edits(folder, lm, kind, config, reports, failed, dict(extra or {}))
    return folder


def _write_edits(
    folder: Path,
    lm: LM,
    kind: str,
    config: Mapping[str, Any],
    reports: Sequence[EditReport],
    failed: Sequence[FailedRow],
    extra: dict[str, Any],
) -> None:
    import pandas as pd

    write_config(folder, config)
    lm.save_edits(folder)
    _write_rows(folder, pd.DataFrame([record for report in reports for record in report.to_records()]))
    edits = {
        "edits": [
            {"id": r.entry.id, "fact": r.fact.id or r.fact.label, "seconds": r.seconds, "fires": r.fires}
            for r in reports
        ],
        "failed": [{"fact": f.fact, "reason": f.reason} for f in failed],
        "metrics": {
            "p_new, p_true": "geometric mean of the target's token probabilities, teacher-forced, as typed",
            "answer": "greedy continuation of 10 tokens, as typed",
        },
    }
    write_manifest(folder, lm, kind, config, edits | extra)


def write_table(
    folder: Path,
    lm: LM,
    kind: str,
    config: Mapping[str, Any],
    rows: pd.DataFrame,
    extra: Mapping[str, Any],
    plots: Mapping[str, Callable[[], go.Figure]] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run that edited nothing: its rows, its figures (as plotly's JSON) and its manifest.

    Args:
        extra: goes into the manifest, beside the edits that were in force.
        plots: what draws each figure, where plotly is installed.
        asked: what `config.yaml` has beside the settings, so that passing it on does the same again.

    Raises:
        WriteFailed: the system does not let it be written; what was not in the folder before is removed.
    """
    given = {name: value for name, value in (asked or {}).items() if value is not None}
    config = finite(config)
    in_force = [entry.id for entry in lm.ledger.active]
    known = {"edits": [], "failed": [], "model_edits": in_force, **finite(extra)}
    with filled_or_removed(folder):
        write_config(folder, {**config, **given, "model": lm.name})
        if find_spec("plotly"):
            save_figures(folder, {name: draw() for name, draw in (plots or {}).items()})
        _write_rows(folder, rows)
        write_manifest(folder, lm, kind, config, known)
    return folder


def write_evaluation(folder: Path, lm: LM, found: Evaluation, config: Mapping[str, Any]) -> Path:
    """Write an evaluation as a run.

    Raises:
        ConfigError: an evaluation is there already. WriteFailed: the system does not let it be written.
    """
    with filled_or_removed(folder):
        found.save(folder)
        write_manifest(folder, lm, "eval", config, {"edits": [], "failed": []})
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write what was asked for, as YAML that can be passed on."""
    import yaml

    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _write_rows(folder: Path, rows: pd.DataFrame) -> None:
    write_whole(folder / "results.parquet", lambda path: rows.to_parquet(path, index=False))


def versions() -> dict[str, str]:
    """Of the libraries that results depend on."""
    return {name: version(name) for name in ("editlab", "torch", "transformers")}


def write_manifest(folder: Path, lm: LM, kind: str, config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write what was run, on which weights, with which versions; a folder with it is complete."""
    manifest = {
        "schema_version": 1,
        "kind": kind,
        "state": "complete",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "base": {"name": lm.name, "hash": lm.base_hash, "tokenizer": lm.tokenizer_hash},
        "state_hash": lm.state_hash,
        "dtype": str(next(lm.model.parameters()).dtype),
        "device": str(lm.device),
        **extra,
        "versions": versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    write_json(folder / "manifest.json", manifest)


def note_undone(folder: Path, lm: LM) -> None:
    """Say in the manifest of a run which of its edits have been taken back since, and where the weights are now.

    What was measured stays as it was. A pack that is no run, or whose manifest cannot be read, is left alone.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written = [edit["id"] for edit in manifest["edits"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    active = {entry.id for entry in lm.ledger.active}
    undone = [id for id in dict.fromkeys(written) if id not in active]
    try:
        write_json(path, manifest | {"undone": undone, "state_hash": lm.state_hash})
    except WriteFailed as error:
        raise WriteFailed(f"The pack in '{folder}' has the edit as undone; {error.what}", error.fix) from error


def check_free(folder: Path) -> None:
    """Raise ConfigError if `folder` holds something already; what a run leaves that was killed at once is nothing."""
    if not folder.exists():
        return
    is_free = folder.is_dir()
    for path in folder.iterdir() if is_free else ():
        is_begun = path.name == "journal.jsonl" and b"\n" not in path.read_bytes()
        is_free = is_free and (path.name.startswith(".") or is_begun)
    if not is_free:
        raise ConfigError(f"'{folder}' is not empty.", "Choose another --out.")
