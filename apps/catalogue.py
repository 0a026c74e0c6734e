"""The pages that there are, read from the files in `views/` without running them.

A page states, as constants at the top of its file:

    TITLE = "Locate"      the name in the navigation
    SECTION = "Analyse"   one of SECTIONS, or a new one, which goes last
    ORDER = 10            its place in the section
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTIONS = ("Model", "Analyse", "Change", "Records")  # the order in which sections are shown
PAGES = (
    Path(__file__).resolve().parent / "views"
)  # a folder called "pages" would make streamlit run these files by itself


@dataclass(frozen=True)
class PageFile:
    """One page: its file, and what its file says of it."""

    path: Path
    title: str
    section: str
    order: int

    @property
    def url(self) -> str:
        """Its part of the address."""
        return self.path.stem


def page_files(folder: Path = PAGES) -> list[PageFile]:
    """The pages in the order in which they are shown.

    Raises:
        ValueError: a file lacks one of the constants.
    """
    found = [_read(path) for path in folder.glob("*.py") if not path.name.startswith("_")]
    rank = {name: i for i, name in enumerate(SECTIONS)}
    return sorted(found, key=lambda p: (rank.get(p.section, len(rank)), p.section, p.order, p.title))


def _read(path: Path) -> PageFile:
    constants: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and len(node.targets) == 1:
            constants[ast.unparse(node.targets[0])] = node.value.value
    missing = [name for name in ("TITLE", "SECTION", "ORDER") if name not in constants]
    if missing:
        raise ValueError(f"The page {path.name} does not state {', '.join(missing)}.")
    return PageFile(path, str(constants["TITLE"]), str(constants["SECTION"]), int(constants["ORDER"]))
