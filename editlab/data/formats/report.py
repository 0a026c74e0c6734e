"""What is wrong with a file, in one list: file, row, field, what, fix."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SHOWN = 12
SAME_PLACE = "groups of rows have the same subject after the same words, so what one writes the others meet"
_COLUMNS = ("file", "row", "field", "what", "fix")
_WIDEST = 300


@dataclass(frozen=True)
class Problem:
    """Why a row was not read.

    Attributes:
        file: its name. row: "line 3", "record 3"; empty for the file as a whole. field: as the file has it.
        what: what is wrong. fix: what to do.
    """

    file: str
    row: str
    field: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.file} {self.row}".strip()
        said = [part for part in (place, self.field, self.what) if part]
        return _cut(f"{': '.join(said)}. {self.fix}".strip())


@dataclass(frozen=True)
class Note(Problem):
    """What a reader should know about a row that was read."""


@dataclass
class Report:
    """What was found in one file.

    Attributes:
        file: its name. layout: the layout's name, empty if none was recognised. holds: what the records are.
        rows: how many there are. records: how many of them are good.
        problems, notes: in the order of the file.
        same_place: groups of rows with one subject after the same words, which a method writes at one place.
    """

    file: str
    layout: str = ""
    holds: str = "records"
    rows: int = 0
    records: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    same_place: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether every row was read."""
        return not self.problems

    def text(self, shown: int = SHOWN) -> str:
        """The problems as lines, the first `shown` of them, under a heading that counts them."""
        if self.is_ok:
            return self.summary
        bad = len({p.row for p in self.problems})
        if self.problems[0].row:
            lines = [f"{bad} of {self.rows} rows are malformed:"]
        else:
            lines = [f"'{self.file}' cannot be used:"]
        lines += [str(problem) for problem in self.problems[:shown]]
        if len(self.problems) > shown:
            lines.append(f"... and {len(self.problems) - shown} more")
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """How much of what there is, in one sentence without the file's name."""
        return f"{self.records} {self.holds}" + (f" in the layout {self.layout}" if self.layout else "")

    def remarks(self, shown: int = 5) -> list[str]:
        """The notes, alike ones together with the rows that they are about."""
        counts = Counter((note.field, note.what) for note in self.notes)
        lines = []
        for (name, what), n in counts.most_common(shown):
            places = [note.row for note in self.notes if (note.field, note.what) == (name, what)]
            more = ", ..." if n > 3 else ""
            lines.append(_cut(f"{n} rows: {name}: {what} ({', '.join(places[:3])}{more})"))
        if self.same_place:
            lines.append(_cut(f"{len(self.same_place)} {SAME_PLACE}: {'; '.join(self.places())}"))
        return lines

    def places(self) -> list[str]:
        """The groups of rows that are written at one place, each as text."""
        return [" and ".join(rows) for rows in self.same_place]

    def to_pandas(self) -> pd.DataFrame:
        """The problems as a table with the columns file, row, field, what, fix."""
        import pandas as pd

        return pd.DataFrame([asdict(problem) for problem in self.problems], columns=list(_COLUMNS))

    def table(self, shown: int = SHOWN) -> Table:
        """The problems as a rich table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=None)
        for name in _COLUMNS:
            table.add_column(name, overflow="fold")
        for problem in self.problems[:shown]:
            table.add_row(*(Text(_cut(cell)) for cell in asdict(problem).values()))
        if len(self.problems) > shown:
            table.caption = f"... and {len(self.problems) - shown} more"
        return table


def _cut(text: str) -> str:
    # One line, and only what every terminal and file can hold.
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    return line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..."
