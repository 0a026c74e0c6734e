"""Runs: edits and analyses, measured, and written to folders that say how they came about."""

from editlab.runs.batch import BatchResult, Plan, StopRules, drop_single_packs, is_finished, read_run, run_batch
from editlab.runs.estimate import Estimate, estimate
from editlab.runs.folder import (
    check_free,
    note_undone,
    run_folder,
    write_evaluation,
    write_manifest,
    write_run,
    write_table,
)
from editlab.runs.measure import FailedRow, edit_and_measure
from editlab.runs.probe import run_probe
from editlab.runs.trace import write_trace

__all__ = [
    "BatchResult",
    "Estimate",
    "FailedRow",
    "Plan",
    "StopRules",
    "check_free",
    "drop_single_packs",
    "edit_and_measure",
    "estimate",
    "is_finished",
    "note_undone",
    "read_run",
    "run_batch",
    "run_folder",
    "run_probe",
    "write_evaluation",
    "write_manifest",
    "write_run",
    "write_table",
    "write_trace",
]
