"""Words that invented texts are put together from. All lists are ours; none is read from a set, so order is fixed."""

from __future__ import annotations

import random

JOBS = (
    "baker", "carpenter", "clockmaker", "gardener", "glassblower", "harbour master", "librarian", "miller",
    "painter", "pharmacist", "potter", "sailor", "schoolteacher", "shepherd", "stonemason", "tailor", "violinist",
    "weaver",
)  # fmt: skip
THINGS = (
    "barometer", "bicycle", "blanket", "cabinet", "carpet", "compass", "copper kettle", "drum", "fishing net",
    "flute", "ladder", "lantern", "leather bag", "mirror", "music box", "painting", "rowing boat", "saddle",
    "silver spoon", "telescope", "wooden chest", "wooden horse",
)  # fmt: skip
ANIMALS = (
    "badger", "beaver", "crane", "donkey", "falcon", "goat", "hedgehog", "heron", "otter", "owl", "pony",
    "raven", "seal", "stork", "swan", "tortoise", "weasel",
)  # fmt: skip
PLANTS = (
    "barley", "basil", "beetroot", "cabbage", "cherry", "chestnut", "clover", "fennel", "hazel", "lavender", "maple",
    "mint", "oat", "onion", "pear", "plum", "pumpkin", "rye", "sage", "tulip", "walnut", "willow",
)  # fmt: skip
PLACES = (
    "behind the old mill", "below the castle", "beside the ferry landing", "in the market square",
    "in the village hall", "near the north gate", "next to the bakery", "on the frozen lake", "on the harbour wall",
    "outside the railway station", "under the stone bridge", "at the edge of the forest",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
NUMBERS = (
    "seven", "nine", "eleven", "twelve", "fourteen", "sixteen", "nineteen", "twenty", "thirty", "forty", "fifty",
    "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
# Two words for one thing: a sentence and its near copy differ in nothing else.
SYNONYMS = (
    ("ancient", "old"), ("big", "large"), ("bright", "shiny"), ("broken", "damaged"), ("cheap", "inexpensive"),
    ("costly", "expensive"), ("famous", "renowned"), ("heavy", "weighty"), ("lovely", "beautiful"), ("odd", "strange"),
    ("plain", "simple"), ("rare", "scarce"), ("sturdy", "robust"), ("tiny", "small"),
)  # fmt: skip

_STARTS = ("B", "Br", "D", "Dr", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "St", "T", "Tr", "V", "W", "Z")
_VOWELS = ("a", "e", "i", "o", "u", "au", "ei")
_MIDDLES = ("b", "d", "l", "ld", "m", "n", "nd", "r", "rn", "s", "sk", "t", "v", "z")
_PERSON_ENDS = ("a", "an", "el", "en", "in", "is", "o", "or", "us")
_TOWN_ENDS = ("berg", "dale", "field", "ford", "ham", "haven", "mouth", "stead", "ton", "wick")


def person(rng: random.Random) -> str:
    """A first and a family name that nobody is known by: "Dralen Voskin"."""
    return f"{name(rng)} {name(rng)}"


def name(rng: random.Random) -> str:
    """One name: "Voskin"."""
    return f"{_stem(rng)}{rng.choice(_PERSON_ENDS)}"


def town(rng: random.Random) -> str:
    """A place that is on no map: "Trauldford"."""
    return f"{_stem(rng)}{rng.choice(_TOWN_ENDS)}"


def letters(rng: random.Random, groups: int) -> str:
    """Random lower-case letters in groups of three to seven."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choice(alphabet) for _ in range(rng.randint(3, 7))) for _ in range(groups))


def _stem(rng: random.Random) -> str:
    return f"{rng.choice(_STARTS)}{rng.choice(_VOWELS)}{rng.choice(_MIDDLES)}"
