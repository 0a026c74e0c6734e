"""Facts from an uploaded file, in any layout that the library reads, and facts as lines of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import streamlit as st

from editlab.data.formats import facts_of, load_records
from editlab.facts import Fact

from .. import cells, errors

TYPES = ["json", "jsonl", "csv", "parquet", "tsv"]


def read(key: str, otherwise: str) -> tuple[list[Fact], list[cells.Flawed]] | None:
    """The facts of a file and what is wrong with its other rows, or None without a file.

    Args:
        otherwise: a sentence on what is used then.
    """
    upload = st.file_uploader(
        f"Facts file: JSON, JSONL, CSV or Parquet, in any layout that editlab reads. {otherwise}", type=TYPES, key=key
    )
    if upload is None:
        return None
    with errors.shown():
        facts, flawed = read_file(upload.name, upload.getvalue())
        st.caption(f"{len(facts)} facts read from {errors.plain(upload.name)}.")
        return facts, flawed
    return [], []


def read_file(name: str, data: bytes) -> tuple[list[Fact], list[cells.Flawed]]:
    """The facts of an uploaded file, and what is wrong with its other rows.

    Raises:
        EditlabError: it is no file of facts.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        loaded = load_records(path, skip_malformed=True)
        flawed = [
            cells.Flawed(int("".join(filter(str.isdigit, p.row)) or 0), f"{p.field}: {p.what}".strip(": "), p.fix)
            for p in loaded.report.problems
        ]
        return facts_of(loaded), flawed


def show_flawed(flawed: Sequence[cells.Flawed]) -> None:
    """Rows that are left out, and what to do about them."""
    if flawed:
        rows = pd.DataFrame([asdict(f) for f in flawed])
        st.dataframe(rows, hide_index=True, height="content", alt="Rows that are no facts")


def lines(facts: Sequence[Fact]) -> list[str]:
    """Facts as JSON, an object a line."""
    return [json.dumps(f.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) for f in facts]
