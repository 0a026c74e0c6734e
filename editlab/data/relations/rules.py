"""How one clean answer per country is read from a field of the factbook, and why a field is left out.

1. Each extractor takes a country's entry and returns an `Answer`, or the reason why there is none.
2. A last rule, the same for all relations in which copying would help, leaves out answers that repeat the subject
   ("Mexico City", "Thai" of "Thailand"): a model that knows nothing gets them right.
3. Reasons are counted, each country once: the first reason found is the one that counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from editlab.data.factbook import countries, country_name, field, names_several_cities

# Reasons for leaving a row out.
MISSING = "the field is missing or names nothing"
SEVERAL = "several answers, or an explanation instead of one"
QUALIFIED = "the answer is not a plain name"
REPEATS = "the answer repeats the subject"
CONTESTED = "the location names another continent too"
WRONG = "the field is known to be wrong"
REASONS = (MISSING, SEVERAL, QUALIFIED, REPEATS, CONTESTED, WRONG)

# Fields that no rule can tell from a right one: ".xk" is assigned to nobody, and Qatar's money is the riyal.
_WRONG_FIELDS = {("internet_code", "Kosovo"), ("currency", "Qatar")}

_PARENTHESIS = re.compile(r"\s*\(([^()]*)\)")
_PLAIN_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_CURRENCY = re.compile(r"^(?P<name>.*?)\s*(?:\([A-Z/]+\))?\s*per US dollar\b")
_OFFICIAL = re.compile(r"\bofficial(?:ly)?\b", re.IGNORECASE)
_HEIGHT = re.compile(r",? ?\b\d[\d,]*(?: m\b.*)?$")

# The factbook writes currencies in the plural. English plurals lose an s; these do not follow that rule.
_SINGULAR = {
    "cedis": "cedi", "colones": "colon", "emalangeni": "lilangeni", "koruny": "koruna", "kroner": "krone",
    "kronor": "krona", "kronur": "krona", "lei": "leu", "leke": "lek", "leva": "lev", "maloti": "loti",
    "meticais": "metical", "quetzales": "quetzal", "zlotych": "zloty",
}  # fmt: skip

# The factbook's map references, read as continents; others ("Arctic Region", "AsiaEurope") name none.
_CONTINENTS = {
    "Africa": "Africa",
    "Asia": "Asia",
    "Central America and the Caribbean": "North America",
    "Europe": "Europe",
    "Middle East": "Asia",
    "North America": "North America",
    "Oceania": "Oceania",
    "South America": "South America",
    "Southeast Asia": "Asia",
}
_CONTINENT_WORDS = {
    "Africa": re.compile(r"\bAfrican?\b"),
    "Asia": re.compile(r"\bAsian?\b"),
    "Europe": re.compile(r"\bEurope(?:an)?\b"),
}


@dataclass(frozen=True)
class Answer:
    """A clean answer and others that are as right."""

    text: str
    aliases: tuple[str, ...] = ()


class Extractor(NamedTuple):
    """How a relation is read.

    Attributes:
        read: an entry's answer, or the reason why there is none.
        repeats: whether an answer for a subject can be had by copying.
    """

    read: Callable[[dict[str, Any]], Answer | str]
    repeats: Callable[[str, str], bool]


def rows_of(relation: str) -> tuple[dict[str, Answer], dict[str, int]]:
    """The clean answers of a relation by country, and how many countries each reason leaves out."""
    extractor = EXTRACTORS[relation]
    found: dict[str, Answer] = {}
    excluded: Counter[str] = Counter()
    for entry in countries():
        subject = country_name(entry)
        if not subject:  # the European Union
            continue
        answer = WRONG if (relation, subject) in _WRONG_FIELDS else extractor.read(entry)
        if isinstance(answer, Answer) and extractor.repeats(subject, answer.text):
            answer = REPEATS
        if isinstance(answer, Answer):
            found[subject] = answer
        else:
            excluded[answer] += 1
    return found, dict(sorted(excluded.items()))


def _shares_a_name(subject: str, answer: str) -> bool:
    """Whether one contains the other, or both hold the same word of four letters or more."""
    s, a = _folded(subject), _folded(answer)
    return s in a or a in s or any(len(word) > 3 and word in s.split() for word in a.split())


def _is_within(subject: str, answer: str) -> bool:
    """Whether the answer is a part of the subject. For words that are made from it: "Thai", but not "Chadian"."""
    return _folded(answer) in _folded(subject)


def _never(subject: str, answer: str) -> bool:
    return False


def _capital(entry: dict[str, Any]) -> Answer | str:
    value = field(entry, "Government", "Capital", "name")
    text = _PARENTHESIS.sub("", value).strip()
    if not text or text == "none":
        return MISSING
    if names_several_cities(text):
        return SEVERAL
    short = text.removesuffix(", D.C.")
    return _answer(text, short, *_other_names(value))


def _language(entry: dict[str, Any]) -> Answer | str:
    text = field(entry, "People and Society", "Languages", "Languages") or field(
        entry, "People and Society", "Languages"
    )
    marks = len(_OFFICIAL.findall(text)) + text.count("state language")
    if not marks:
        return MISSING
    if marks > 1:
        return SEVERAL
    item = next((item for item in _items(text) if _OFFICIAL.search(item)), "")
    name = re.split(r"\s*\(|\s+\d", item)[0].removesuffix(" only").strip()
    if not _PLAIN_WORD.fullmatch(name) or not name[0].isupper():
        return QUALIFIED
    return _answer(name, *re.findall(r"also known as (\w+)", item))


def _currency(entry: dict[str, Any]) -> Answer | str:
    match = _CURRENCY.match(field(entry, "Economy", "Exchange rates", "Currency"))
    # Two currencies have neither a code nor a rate behind them.
    name = match["name"] if match else field(entry, "Economy", "Exchange rates", "Currency")
    if not name:
        return MISSING
    if "/" in name or " or " in name:
        return SEVERAL
    *before, last = name.split()
    singular = _SINGULAR.get(last, last.removesuffix("s"))
    full = " ".join((*before, singular))
    return _answer(singular, full, *(["CFA franc"] if full.endswith(("Africaine franc", "Centrale franc")) else []))


def _continent(entry: dict[str, Any]) -> Answer | str:
    continent = _CONTINENTS.get(field(entry, "Geography", "Map references"))
    if continent is None:
        return SEVERAL
    location = field(entry, "Geography", "Location")
    if any(name != continent and word.search(location) for name, word in _CONTINENT_WORDS.items()):
        return CONTESTED
    return Answer(continent)


def _nationality(entry: dict[str, Any]) -> Answer | str:
    value = _PARENTHESIS.sub("", field(entry, "People and Society", "Nationality", "adjective"))
    if not value or value == "none":
        return MISSING
    if "," in value or ";" in value:
        return SEVERAL
    first, *others = value.split(" or ")
    return _answer(first.strip(), *(other.strip() for other in others))


def _internet_code(entry: dict[str, Any]) -> Answer | str:
    value = field(entry, "Communications", "Internet country code")
    if not value:
        return MISSING
    if not re.fullmatch(r"\.[a-z]{2}", value):
        return SEVERAL
    return Answer(value[1:], (value,))


def _highest_point(entry: dict[str, Any]) -> Answer | str:
    value = field(entry, "Geography", "Elevation", "highest point")
    text = _HEIGHT.sub("", _PARENTHESIS.sub("", value).split(";")[0]).strip()
    if not text or "unnamed" in text:
        return MISSING
    if "/" in text:
        return SEVERAL
    words = text.split()
    if re.search(r"\((?:on|a secondary) ", value):  # a point outside the country proper, a peak that is not the highest
        return QUALIFIED
    if re.search(r"[;,]|\b(?:on|range|area|border|location)\b", text) or not words[0][0].isupper():
        return QUALIFIED
    return _answer(text, *_other_names(value))


EXTRACTORS = {
    "capital": Extractor(_capital, _shares_a_name),
    "language": Extractor(_language, _is_within),
    "currency": Extractor(_currency, _is_within),
    "continent": Extractor(_continent, _shares_a_name),
    "nationality": Extractor(_nationality, _is_within),
    "internet_code": Extractor(_internet_code, _never),
    "highest_point": Extractor(_highest_point, _shares_a_name),
}


def _answer(text: str, *others: str) -> Answer:
    """The answer with its aliases: the others and every spelling without accents, each once."""
    names = dict.fromkeys(name for name in (text, *others) if name)
    spellings = dict.fromkeys([*names, *(_unaccented(name) for name in names)])
    return Answer(text, tuple(name for name in spellings if name != text))


def _other_names(value: str) -> list[str]:
    """Names in parentheses: three words at most, each with a capital and no digit."""
    found = [inside.strip() for inside in _PARENTHESIS.findall(value)]
    return [n for n in found if 0 < len(n.split()) <= 3 and all(w[0].isupper() and w.isalpha() for w in n.split())]


def _items(text: str) -> list[str]:
    """The parts between commas and semicolons that stand outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _folded(text: str) -> str:
    return _unaccented(text).casefold()
