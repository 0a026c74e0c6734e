"""Runs: an edit or a list of edits, measured, and written to a folder that says how it came about.

A run folder is an edit pack (`pack.json`, `edits.safetensors`) with `manifest.json`, `config.yaml` and
`results.parquet` beside it, so whatever takes a pack takes a run.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from editlab.data.suggest import with_suggestions
from editlab.errors import ConfigError, EditFailed, RequestError
from editlab.evaluation.scorer import score_facts
from editlab.progress import OnStep, StepInfo, silent
from editlab.report import EditReport, compare
from editlab.state.files import write_json, write_text, write_whole

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

Mode = Literal["single", "sequential"]


def edit_and_measure(
    lm: LM, fact: Fact, method: str = "rome", config: Mapping[str, Any] | None = None, on_step: OnStep = silent
) -> EditReport:
    """One edit, kept in the ledger, with every prompt scored before and after it.

    A fact without paraphrases or neighbours gets suggested ones, marked as such.
    """
    fact, no_paraphrases, no_neighbours = with_suggestions(fact)
    suggested = ["paraphrase"] * no_paraphrases + ["neighbour"] * no_neighbours
    before = score_facts(lm, [fact])[0]
    started = time.perf_counter()
    entry = lm.edit(fact, method, on_step=on_step, **(config or {}))
    seconds = time.perf_counter() - started
    after = score_facts(lm, [fact])[0]
    return EditReport(entry, fact, compare(fact, before, after, suggested), seconds)


@dataclass(frozen=True)
class FailedRow:
    """A fact that could not be edited, and why."""

    fact: str
    reason: str


def edit_many(
    lm: LM,
    facts: Sequence[Fact],
    method: str,
    config: Mapping[str, Any] | None = None,
    mode: Mode = "single",
    on_step: OnStep = silent,
) -> tuple[list[EditReport], list[FailedRow]]:
    """Edit facts one after the other.

    Args:
        mode: "single" undoes each edit before the next, and scores it right after it was made; "sequential" keeps all
            and scores every fact after the last edit. Suggested prompts are not added.

    Raises:
        ConfigError: a setting is wrong, which would fail every fact alike. A fact that cannot be edited fails alone.
    """
    if mode not in ("single", "sequential"):
        raise ConfigError(f"Mode '{mode}' is not known.", "Use single or sequential.")
    before = score_facts(lm, facts)
    reports: list[EditReport] = []
    failed: list[FailedRow] = []
    for i, (fact, scores) in enumerate(zip(facts, before, strict=True)):
        on_step(StepInfo("editing", i, len(facts), "facts", fact.subject))
        started = time.perf_counter()
        try:
            entry = lm.edit(fact, method, on_step=on_step, **(config or {}))
        except (RequestError, EditFailed) as error:
            failed.append(FailedRow(fact.id or fact.subject, str(error)))
            continue
        seconds = time.perf_counter() - started
        after = score_facts(lm, [fact])[0] if mode == "single" else scores
        if mode == "single":
            entry = lm.undo(entry.id)
        reports.append(EditReport(entry, fact, compare(fact, scores, after), seconds))
    if mode == "sequential" and reports:
        final = score_facts(lm, [r.fact for r in reports])
        first = dict(zip((id(f) for f in facts), before, strict=True))
        reports = [
            EditReport(r.entry, r.fact, compare(r.fact, first[id(r.fact)], after), r.seconds)
            for r, after in zip(reports, final, strict=True)
        ]
    on_step(StepInfo("editing", len(facts), len(facts), "facts"))
    return reports, failed


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
    """Write a run; the manifest comes last, so a folder with one is complete.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    import pandas as pd
    import yaml

    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    lm.save_edits(folder)
    records = [record for report in reports for record in report.to_records()]
    write_whole(folder / "results.parquet", lambda path: pd.DataFrame(records).to_parquet(path, index=False))
    edits = {
        "edits": [
            {"id": r.entry.id, "fact": r.fact.id or r.fact.subject, "seconds": r.seconds, "fires": r.fires}
            for r in reports
        ],
        "failed": [{"fact": f.fact, "reason": f.reason} for f in failed],
        "metrics": {
            "p_new, p_true": "geometric mean of the target's token probabilities, teacher-forced, as typed",
            "answer": "greedy continuation of 10 tokens, as typed",
        },
    }
    write_manifest(folder, lm, kind, config, edits | dict(extra or {}))
    return folder


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
        "versions": {name: version(name) for name in ("editlab", "torch", "transformers")},
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    write_json(folder / "manifest.json", manifest)


def check_free(folder: Path) -> None:
    """Raise ConfigError if `folder` holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"'{folder}' is not empty.", "Choose another --out.")
