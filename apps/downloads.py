"""Files to take away. Each is made when it is asked for."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import streamlit as st

from editlab.lm import LM
from editlab.state.packs import save_pack


def csv(label: str, table: Callable[[], pd.DataFrame], name: str) -> None:
    """A button for a table as CSV, in full precision."""
    st.download_button(
        label, lambda: table().to_csv(index=False).encode(), f"{name}.csv", "text/csv", on_click="ignore"
    )


def json_file(label: str, data: Callable[[], Any], name: str) -> None:
    """A button for JSON."""
    st.download_button(
        label,
        lambda: json.dumps(data(), ensure_ascii=False, indent=1, default=str).encode(),
        f"{name}.json",
        "application/json",
        on_click="ignore",
    )


def notebook(label: str, made: Callable[[], dict[str, Any]], name: str) -> None:
    """A button for a Jupyter notebook."""
    st.download_button(
        label,
        lambda: json.dumps(made(), ensure_ascii=False, indent=1).encode(),
        f"{name}.ipynb",
        "application/x-ipynb+json",
        on_click="ignore",
    )


def json_lines(label: str, lines: Callable[[], list[str]], name: str) -> None:
    """A button for JSON, an object a line."""
    st.download_button(
        label, lambda: "\n".join(lines()).encode(), f"{name}.jsonl", "application/jsonl", on_click="ignore"
    )


def html(label: str, page: Callable[[], str], name: str) -> None:
    """A button for a page of its own, which needs no network."""
    st.download_button(label, lambda: page().encode(), f"{name}.html", "text/html", on_click="ignore")


def folder(label: str, path: Path) -> None:
    """A button for a folder as a zip file."""
    st.download_button(label, lambda: zipped(path), f"{path.name}.zip", "application/zip", on_click="ignore")


def pack(label: str, lm: LM, name: str, only: list[str] | None = None) -> None:
    """A button for the ledger, or some of its entries, as an edit pack."""

    def made() -> bytes:
        with TemporaryDirectory() as temporary:
            return zipped(save_pack(Path(temporary) / name, lm.ledger, lm.name, only=only))

    st.download_button(label, made, f"{name}.zip", "application/zip", on_click="ignore", disabled=not len(lm.ledger))


def image_options(name: str) -> dict[str, Any]:
    """A chart's `config`: its camera button gives a sharp picture with this file name."""
    return {"toImageButtonOptions": {"format": "png", "scale": 2, "filename": name}, "displaylogo": False}


def zipped(path: Path) -> bytes:
    """The files under a folder, the folder's own name in front; hidden and unfinished files are left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.name.startswith(".") and file.suffix != ".tmp":
                archive.write(file, Path(path.name) / file.relative_to(path))
    return buffer.getvalue()
