"""Pairs of texts (a, b), of which one is studied and the other is its foil; then the other way round.

Each kind of pair is a difficulty of recognising the studied one. Because both texts of a pair are studied in turn, with
the other as foil, a model that has studied nothing scores exactly one half on them, whichever it finds more plausible
(the paper's design, arXiv 2303.17557, lacks this: its zero point is near 0 for some of its experiments).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from editlab.data.stimuli import words
from editlab.errors import ConfigError, UnknownName, did_you_mean

# One fact in two wordings each.
TEMPLATES = (
    ("The {job} {person} sold a {adjective} {thing} in {town} for {number} coins.",
     "For {number} coins, {town} got a {adjective} {thing} from the {job} {person}."),
    ("In {month}, {person} of {town} found a {adjective} {thing} {place}.",
     "A {adjective} {thing} was found {place} by {person} of {town} in {month}."),
    ("The {job} of {town} keeps a {adjective} {animal} that {person} caught in {month}.",
     "{person} caught a {adjective} {animal} in {month}, which the {job} of {town} keeps."),
    ("{person} planted {number} rows of {plant} for a {adjective} {animal} in {town}.",
     "A {adjective} {animal} in {town} ate {number} rows of {plant} that {person} planted."),
    ("The {adjective} {thing} in {town} was made by {person}, a {job}, in {number} days.",
     "It took {person}, a {job}, {number} days to make the {adjective} {thing} in {town}."),
    ("Since {month}, a {adjective} {animal} sleeps {place} and {person} feeds it {plant}.",
     "A {adjective} {animal}, fed {plant} by {person}, sleeps {place} since {month}."),
    ("{person} wrote to a {job} in {town} about the {adjective} {thing} stolen {place}.",
     "A {job} in {town} heard from {person} about the {adjective} {thing} stolen {place}."),
    ("On a {adjective} {thing}, {person} and {number} {animal}s crossed from {town} in {month}.",
     "In {month}, {number} {animal}s and {person} crossed from {town} on a {adjective} {thing}."),
)  # fmt: skip

PROSE_WORDS = (12, 20)
TRIES = 1000  # draws in a row that give nothing new


@dataclass(frozen=True)
class Pair:
    """Two texts that are studied in turn."""

    a: str
    b: str


@dataclass(frozen=True)
class Stimuli:
    """Pairs of one kind.

    Attributes:
        kind: one of `KINDS`, or the name of a file. seed: what they were drawn with.
    """

    kind: str
    seed: int
    pairs: tuple[Pair, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All a, then all b."""
        return tuple(p.a for p in self.pairs) + tuple(p.b for p in self.pairs)

    @property
    def sha256(self) -> str:
        """Of the texts."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


Make = Callable[[random.Random], Pair]


def _filled(rng: random.Random, template: str | None = None) -> tuple[str, str, tuple[str, str]]:
    """A sentence, its other wording, and the adjective with its synonym."""
    templates = dict(TEMPLATES)
    first = template or rng.choice(list(templates))
    adjective = rng.choice(words.SYNONYMS)
    adjective = adjective if rng.random() < 0.5 else (adjective[1], adjective[0])
    parts = {
        "adjective": adjective[0], "animal": rng.choice(words.ANIMALS), "job": rng.choice(words.JOBS),
        "month": rng.choice(words.MONTHS), "number": rng.choice(words.NUMBERS), "person": words.name(rng),
        "place": rng.choice(words.PLACES), "plant": rng.choice(words.PLANTS), "thing": rng.choice(words.THINGS),
        "town": words.town(rng),
    }  # fmt: skip
    texts = [_articles(wording.format(**parts)) for wording in (first, templates[first])]
    return texts[0], texts[1], adjective


def _articles(text: str) -> str:
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


def _sentence(rng: random.Random) -> Pair:
    return Pair(_filled(rng)[0], _filled(rng)[0])


def _same_template(rng: random.Random) -> Pair:
    template = rng.choice([a for a, _ in TEMPLATES])
    return Pair(_filled(rng, template)[0], _filled(rng, template)[0])


def _paraphrase(rng: random.Random) -> Pair:
    return Pair(*_filled(rng)[:2])


def _synonym(rng: random.Random) -> Pair:
    text, _, (word, other) = _filled(rng)
    return Pair(
        text, _articles(re.sub(rf"\b([Aa])n? {word}\b", rf"\1 {other}", text).replace(f" {word} ", f" {other} "))
    )


def _prose(rng: random.Random) -> Pair:
    return Pair(*rng.sample(_sentences(), 2))


def _word_string(rng: random.Random) -> Pair:
    return Pair(*(" ".join(rng.sample(_vocabulary(), 14)) for _ in range(2)))


def _letter_string(rng: random.Random) -> Pair:
    return Pair(words.letters(rng, 6), words.letters(rng, 6))


def _shuffled(rng: random.Random) -> Pair:
    text = _filled(rng)[0]
    return Pair(text, " ".join(rng.sample(text.split(), len(text.split()))))


def _words_or_sentence(rng: random.Random) -> Pair:
    return Pair(_word_string(rng).a, _filled(rng)[0])


@cache
def _vocabulary() -> tuple[str, ...]:
    from editlab.data.factbook import passages

    found = {w for p in passages() for w in re.findall(r"\b[a-z]{3,}\b", p)}
    return tuple(sorted(found))


@cache
def _sentences() -> tuple[str, ...]:
    """Whole sentences of the factbook, none so short that little is left to recall."""
    from editlab.data.factbook import passages
    from editlab.data.stimuli.filler import SENTENCE_END

    found = {s.strip() for p in passages() for s in SENTENCE_END.split(p)}
    low, high = PROSE_WORDS
    whole = (s for s in found if s[0].isupper() and s.endswith(".") and ". " not in s)
    return tuple(sorted(s for s in whole if low <= len(s.split()) <= high))


KINDS: dict[str, tuple[str, Make]] = {
    "prose": ("a sentence of ordinary prose, or another one", _prose),
    "sentence": ("an invented sentence, or one about something else", _sentence),
    "same-template": ("a sentence, or one of the same form with other names", _same_template),
    "paraphrase": ("a sentence, or the same in other words", _paraphrase),
    "synonym": ("a sentence, or the same with one word replaced by a synonym", _synonym),
    "shuffled": ("a sentence, or its words in random order", _shuffled),
    "words": ("fourteen random words, or fourteen others", _word_string),
    "words-or-sentence": ("fourteen random words, or a sentence", _words_or_sentence),
    "letters": ("six groups of random letters, or six others", _letter_string),
}


def stimuli(kind: str = "sentence", n: int = 64, seed: int = 0) -> Stimuli:
    """`n` pairs of a kind; no text occurs twice in them.

    Raises:
        UnknownName: there is no such kind. ConfigError: it has fewer texts.
    """
    if kind not in KINDS:
        raise UnknownName(f"There is no kind of stimulus '{kind}'.", did_you_mean(kind, list(KINDS)))
    rng = random.Random(f"{kind} {seed}")
    pairs: list[Pair] = []
    seen: set[str] = set()
    while len(pairs) < n:
        drawn = (KINDS[kind][1](rng) for _ in range(TRIES))
        pair = next((p for p in drawn if p.a != p.b and not seen & {p.a, p.b}), None)
        if pair is None:
            raise ConfigError(
                f"The kind '{kind}' has no more than {len(pairs)} pairs, {n} were asked for.",
                "Ask for fewer, or name a file of your own.",
            )
        seen |= {pair.a, pair.b}
        pairs.append(pair)
    return Stimuli(kind, seed, tuple(pairs))


def read_stimuli(path: Path, n: int | None = None, seed: int = 0) -> Stimuli:
    """Pairs from a file of one's own, in an order drawn with `seed`.

    Args:
        path: .jsonl, .csv or .parquet with a column "text" and, if the foils are given, "foil"; or a text file with
            a text a line. Without foils texts are paired at random.
        n: at most so many pairs.

    Raises:
        ConfigError: no such file or column, a damaged file, fewer than two texts, or a text that occurs twice.
    """
    try:
        rows = _read_rows(path)
    except (OSError, ValueError) as error:  # ValueError: it is no UTF-8, or no table
        raise ConfigError(f"'{path}' cannot be read: {error}.", "Give a table, or a text file in UTF-8.") from None
    texts = [t for row in rows for t in row]
    if len(set(texts)) < len(texts):
        twice = next(t for t in texts if texts.count(t) > 1)
        raise ConfigError(f"'{path}' has this text twice: '{twice[:80]}'.", "Keep it once: a foil must be new.")
    rng = random.Random(f"{path.name} {seed}")
    rng.shuffle(rows)
    if rows and len(rows[0]) == 1:
        rows = [(rows[i][0], rows[i + 1][0]) for i in range(0, len(rows) - 1, 2)]
    if not rows:
        raise ConfigError(f"'{path}' has fewer than two texts.", "Give at least one text and one foil.")
    return Stimuli(path.name, seed, tuple(Pair(*row) for row in rows[:n]))


def _read_rows(path: Path) -> list[tuple[str, ...]]:
    from editlab.data.corpus import read_table

    if not path.is_file():
        raise ConfigError(f"There is no file '{path}'.", f"Name a file, or one of the kinds {', '.join(KINDS)}.")
    if path.suffix in {".jsonl", ".csv", ".parquet"}:
        table = read_table(path)
        columns = ["text", "foil"] if "foil" in table else ["text"]
        return [tuple(str(v).strip() for v in row) for row in table[columns].dropna().itertuples(index=False)]
    return [(line.strip(),) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
