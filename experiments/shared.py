"""Where the results of a script go: into runs/, unless it is told to update those that are under version control.

parser = argparse.ArgumentParser(...)
add_option(parser)
folder = results_folder(__file__, parser.parse_args().update_results)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from editlab import Fact
from editlab.data.formats import load_facts
from editlab.errors import EditlabError

RUNS = Path("runs/experiments")


def add_option(parser: argparse.ArgumentParser, what: str = "the results beside this script") -> None:
    """The option that all scripts have."""
    parser.add_argument(
        "--update-results", action="store_true", help=f"write {what}, which are under version control, not to runs/"
    )


def results_folder(script: str | Path, update: bool) -> Path:
    """The script's own folder if it is to be updated, else one of the same name in runs/experiments; it exists."""
    own = Path(script).resolve().parent
    folder = own if update else RUNS / own.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_facts(parser: argparse.ArgumentParser, paths: Iterable[Path | None]) -> list[Fact]:
    """The facts of all files, in their order; one that cannot be read ends the script with a sentence."""
    try:
        return [fact for path in paths if path is not None for fact in load_facts(path)]
    except EditlabError as error:
        parser.error(str(error))
