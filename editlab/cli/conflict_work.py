"""What the commands of `editlab conflicts` share: a model, items, tables for people, and the run folder at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlab.cli.console import Output, read_facts, settle_prefixes
from editlab.cli.options import Seed, TargetPrefix
from editlab.display import text_table
from editlab.jsonable import records

if TYPE_CHECKING:
    import pandas as pd

    from editlab.lm import LM
    from editlab.probes.conflicts.items import Items, ItemSettings

RATES = ("condition", "memory", "context", "other", "subjects", "prefers_memory", "difference")
EVIDENCE = ("evidence", "group", "memorization_ratio", "low", "high", "n", "undecided")


@dataclass(frozen=True)
class Conflict:
    """Which conflicts to build."""

    file: Annotated[
        Path | None,
        typer.Option("--file", help="Facts in any layout: target_true is memory's, target_new the context's."),
    ] = None
    target_prefix: TargetPrefix = None
    format: Annotated[
        str,
        typer.Option(
            "--format", help="Context: substitution, repeated, reversed, question, paragraph or irrelevant (a control)."
        ),
    ] = "substitution"
    stem: Annotated[
        str | None, typer.Option("--stem", help="Prompt with {} for the subject; default the relation's.")
    ] = None
    draws: Annotated[int, typer.Option("--draws", min=1, max=20, help="Contradicting answers per subject.")] = 3
    subjects: Annotated[int | None, typer.Option("--subjects", min=6, help="At most so many subjects.")] = None
    seed: Seed = 0

    def settings(self) -> ItemSettings:
        """The settings of the items.

        Raises:
            ConfigError: one is invalid.
        """
        from editlab.config import build
        from editlab.data.conflicts import check_format
        from editlab.probes.conflicts.items import ItemSettings

        names = ("stem", "draws", "subjects", "seed")
        given = {"format": check_format(self.format), **{name: getattr(self, name) for name in names}}
        return build(ItemSettings, given, "the conflicts")

    def cases(self, out: Output, lm: LM, relation: str) -> Any:
        """Cases of a relation, or of the file if there is one."""
        from editlab.data.conflicts import cases_of_facts, cases_of_relation

        if self.file is None:
            return cases_of_relation(relation)
        facts = read_facts(out, self.file, False, self.target_prefix)
        return cases_of_facts(settle_prefixes(out, lm, facts, self.file), self.file.name)

    def asked(self, command: str, relation: str) -> dict[str, Any]:
        """What a run's config says of its command and conflicts."""
        where = {"relation": relation} if self.file is None else {"file": str(self.file)}
        return {"command": command, **where, **self.settings().model_dump(mode="json")}


@dataclass(frozen=True)
class Work:
    """A command at work: what it was asked, the model, and where the results go."""

    out: Output
    lm: LM
    run: Path | None
    asked: Mapping[str, Any]

    def items(self, conflict: Conflict, relation: str) -> Items:
        """The items, and a remark on what they are."""
        from editlab.probes.conflicts.items import build_items

        cases = conflict.cases(self.out, self.lm, relation)
        items = build_items(self.lm, cases, conflict.settings(), on_step=self.out.on_step)
        self.out.say(items.headline)
        return items

    def end(
        self,
        headline: str,
        rows: pd.DataFrame,
        plotted: Mapping[str, Any],
        extra: Mapping[str, Any],
        columns: tuple[str, ...] = (),
        *,
        pack: bool = False,
    ) -> None:
        """Write the run folder, and say what came out."""
        from editlab.runs import run_folder, write_table
        from editlab.state.files import filled_or_removed

        if columns:
            self.out.show(shown(rows, columns))
        folder = self.run or run_folder("conflicts", self.lm.base_hash)
        known = {"headline": headline, **extra}
        plots = {name: found.plot for name, found in plotted.items()}
        with filled_or_removed(folder):
            if pack:
                self.lm.save_edits(folder)
            write_table(folder, self.lm, "conflicts", self.asked, rows, known, plots)
        self.out.result(
            {"run": str(folder), "headline": headline, "rows": records(rows), **extra}, f"{headline}\nRun: {folder}"
        )


def is_conflictqa(file: Path) -> bool:
    """Whether a file has that layout."""
    from editlab.data.formats import load_records

    return load_records(file).layout.name == "conflictqa"


def score_columns(rows: pd.DataFrame) -> list[str]:
    """Columns of a head table beyond the usual."""
    return [name for name in ("S_subject", "S_context", "gradient") if name in rows]


def shown(rows: pd.DataFrame, columns: tuple[str, ...]) -> str:
    """A table for people: shares in per cent, everything else short."""
    shares = {"memory", "context", "other", "recall", "agreeing", "prefers_memory", "rise", "low", "high"}
    shares |= {"memorization_ratio", "undecided", "rise_low", "rise_high", "pruned", "unpruned"}

    def cell(name: str, value: Any) -> str:
        if isinstance(value, float):
            if value != value:
                return ""
            return f"{value:.0%}" if name in shares else f"{value:.3g}"
        return str(value)

    found = [name for name in columns if name in rows]
    return text_table(found, [[cell(name, row[name]) for name in found] for row in rows.to_dict("records")]) + "\n"
