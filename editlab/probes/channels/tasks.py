"""Prompts with controlled positions, on which channels are tested.

1. `ioi`: two names, one of them repeated; the other is the answer (Wang et al., arXiv 2211.00593; sentences our own).
2. `laundry`: a list of n items of which all but one are said to be done; the one left is the answer. Names the idea of
   the Laundry List of "Talking Heads" (arXiv 2406.09519); its wording was not at hand, so ours is another.
3. `repeats`: random tokens, and the same again up to somewhere; the answer is what followed the first time.

Names, nouns and items are single tokens (with the space in front), so that every mention is one position. All draws
come from a seed. Prompts begin with the model's sink token; the last token is END, where the answer is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from editlab.errors import RequestError
from editlab.hooks.batch import Batch, pad_rows, token_at

if TYPE_CHECKING:
    from editlab.lm import LM

Order = Literal["same", "shuffled"]
Split = Literal["all", "dev", "test"]

NAMES = (
    *("John", "Mary", "Tom", "James", "Anna", "Paul", "Mark", "David", "Peter", "Sarah", "Laura", "Robert", "Michael"),
    *("Alice", "George", "Henry", "Jack", "Kate", "Lucy", "Martin", "Simon", "Emma", "Richard", "Alex"),
)
PLACES = ("store", "park", "school", "office", "garden", "station", "market", "beach", "library", "museum")
THINGS = ("book", "ring", "ball", "drink", "letter", "phone", "key", "map", "gift", "bag", "cup", "pen")
ITEMS = (
    *("shirt", "book", "lamp", "towel", "knife", "plate", "chair", "clock", "bag", "pen", "hat", "soap", "brush"),
    *("phone", "rope", "glass", "spoon", "bottle", "box", "coat", "belt", "ring", "map", "key", "radio", "mirror"),
    *("candle", "camera", "basket", "blanket", "pillow", "carpet", "bell", "wallet", "watch", "ball", "drum", "jar"),
    *("ladder", "bucket", "hammer", "toy", "fan", "tape", "flag", "desk", "bed", "bowl"),
)
IOI_TEMPLATES = (
    "Then, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "When {A} and {B} came back from the {place}, {S} handed the {thing} to",
    "After {A} and {B} had met at the {place}, {S} decided to give the {thing} to",
    "Yesterday {A} and {B} worked at the {place}. Later {S} passed a {thing} to",
    "While {A} and {B} were walking to the {place}, {S} offered a {thing} to",
    "The friends {A} and {B} found a {thing} at the {place}. Then {S} gave it to",
    "Last week {A} and {B} had a long talk at the {place}, and {S} brought the {thing} to",
    "Once {A} and {B} sat down in the {place}, {S} showed the {thing} to",
    "In the morning {A} and {B} left the {place}. In the evening {S} sent a {thing} to",
    "Because {A} and {B} liked the {place}, they stayed. Before long {S} lent a {thing} to",
)
LIST_TEMPLATES = (
    "So {N} went to the store to buy {list}. {N} already bought {done}, so now {N} only needs to buy the",
    "Today {N} has to pack {list}. {N} has already packed {done}. The only thing left to pack is the",
)
POOLS = ("any", "words", "capitals", "names")
PERIODS = (12, 16)
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Prompt:
    """One prompt and what there is to read in it; positions count tokens, the sink at 0.

    Attributes:
        items: what the answer is chosen among, as text; item_ids: their tokens.
        target: which of them is right.
        first: where each is mentioned first; for `repeats` only that of the right one.
        second: where each is mentioned again, -1 where it is not.
        template: what was filled in, as a number. order, pos: of a list, and the target's place in it.
    """

    text: str
    ids: tuple[int, ...]
    items: tuple[str, ...]
    item_ids: tuple[int, ...]
    target: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    template: int
    order: str = ""

    @property
    def n(self) -> int:
        """How many items there are."""
        return len(self.items)

    def record(self) -> dict[str, Any]:
        """Plain values, for a line of JSON."""
        return asdict(self) | {"pos": self.target, "n": self.n}


def batch_of(prompts: Sequence[Prompt], device: Any = "cpu") -> Batch:
    """The prompts, padded on the left so that END is the last column of all."""
    return pad_rows([p.ids for p in prompts], device=device)


def single_tokens(lm: LM, words: Sequence[str], least: int, what: str) -> list[str]:
    """Those words that are one token after a space.

    Raises:
        RequestError: fewer than `least` are.
    """
    found = [w for w in words if len(lm.tokens(f" {w}", special=False)[0]) == 1]
    if len(found) < least:
        raise RequestError(
            f"Only {len(found)} of {len(words)} {what} are single tokens of {lm.name}; {least} are needed.",
            "This task needs a model whose tokenizer knows common words.",
        )
    return found


def ioi(lm: LM, n: int = 200, *, seed: int = 0, without: Collection[str] = ()) -> list[Prompt]:
    """`n` prompts over all templates, the repeated name as often the first one as the second.

    Args:
        without: texts that are not drawn again.

    Raises:
        RequestError: too few words are single tokens, or hardly any other prompt can be made of them.
    """
    rng = np.random.default_rng(seed)
    names = single_tokens(lm, NAMES, 6, "names")
    places, things = (single_tokens(lm, w, 2, "nouns") for w in (PLACES, THINGS))

    def draw(i: int) -> Prompt:
        again, template = divmod(i, len(IOI_TEMPLATES))
        repeated = again % 2
        a, b = (str(x) for x in rng.choice(names, 2, replace=False))
        fill = {"place": rng.choice(places), "thing": rng.choice(things)}
        text = IOI_TEMPLATES[template].format(A=a, B=b, S=(a, b)[repeated], **fill)
        return _located(lm, text, (a, b), 1 - repeated, template)

    return [_other(draw, i, without) for i in range(n)]


def laundry(
    lm: LM,
    length: int,
    per_position: int = 10,
    *,
    order: Order = "same",
    split: Split = "all",
    seed: int = 0,
) -> list[Prompt]:
    """Lists of `length` items, each place of the target equally often.

    Args:
        per_position: prompts per place of the target.
        order: of what is done, as it was listed or shuffled.
        split: "dev" and "test" have no item and no name in common.

    Raises:
        RequestError: there are too few items for lists of this length.
    """
    names = single_tokens(lm, NAMES, 4, "names")
    items = single_tokens(lm, ITEMS, min(length + 2, len(ITEMS)), "items")
    if split != "all":
        part = 0 if split == "dev" else 1
        names, items = names[part::2], items[part::2]
    if not 2 <= length <= len(items):
        raise RequestError(
            f"A list of {length} items cannot be made of {len(items)} single-token items.",
            f"Choose 2 to {len(items)}.",
        )
    rng = np.random.default_rng([seed, length])
    prompts = []
    for target in range(length):
        for k in range(per_position):
            template = k % len(LIST_TEMPLATES)
            chosen = tuple(str(x) for x in rng.choice(items, length, replace=False))
            done = [x for i, x in enumerate(chosen) if i != target]
            if order == "shuffled":
                done = [str(x) for x in rng.permutation(done)]
            name = str(rng.choice(names))
            text = LIST_TEMPLATES[template].format(N=name, list=_listed(chosen), done=_listed(done))
            prompts.append(_located(lm, text, chosen, target, template, order))
    return prompts


def repeats(lm: LM, n: int = 200, *, seed: int = 0, without: Collection[str] = ()) -> list[Prompt]:
    """Random tokens, then the same again and cut off: 8 kinds, 4 pools of tokens at 2 lengths.

    At END a token stands for the second time; the answer is the one that followed it the first time.

    Args:
        without: texts that are not drawn again.

    Raises:
        RequestError: hardly any other prompt can be made.
    """
    rng = np.random.default_rng(seed)
    vocabulary = lm.tokenizer.get_vocab()
    special = set(lm.tokenizer.all_special_ids)
    own = {t: i for t, i in vocabulary.items() if i not in special}
    words = [i for t, i in own.items() if t[:1] == "Ġ" and t[1:].isascii() and t[1:].isalpha() and len(t) > 3]
    by_id = {i: t for t, i in own.items()}
    pools = {
        "any": sorted(own.values()),
        "words": sorted(i for i in words if by_id[i][1:].islower()),
        "capitals": sorted(i for i in words if by_id[i][1:2].isupper()),
        "names": sorted(vocabulary[f"Ġ{name}"] for name in NAMES if f"Ġ{name}" in vocabulary),
    }
    sink = lm.need_sink()

    def draw(i: int) -> Prompt:
        template = i % (len(POOLS) * len(PERIODS))
        period = PERIODS[template // len(POOLS)]
        pool = pools[POOLS[template % len(POOLS)]]
        pool = pool if len(pool) > period else pools["any"]
        once = [int(t) for t in rng.choice(pool, period, replace=False)]
        seen = int(rng.integers(period // 2, period - 1))  # END repeats once[seen]
        ids = (*sink, *once, *once[: seen + 1])
        answer = once[seen + 1]
        text = lm.tokenizer.decode(list(ids[len(sink) :]))
        said = lm.tokenizer.decode([answer])
        return Prompt(text, ids, (said,), (answer,), 0, (seen + 1 + len(sink),), (-1,), template)

    return [_other(draw, i, without) for i in range(n)]


def _other(draw: Callable[[int], Prompt], i: int, without: Collection[str]) -> Prompt:
    """The first prompt in the place `i` whose text is not among `without`."""
    for _ in range(MOST_DRAWS):
        made = draw(i)
        if made.text not in without:
            return made
    raise RequestError(
        "Hardly any prompt is left that was not drawn before.", "Ask for fewer prompts, or use a larger vocabulary."
    )


def _listed(items: Sequence[str]) -> str:
    """ "the a", "the a and the b", "the a, the b, and the c"."""
    each = [f"the {item}" for item in items]
    if len(each) < 3:
        return " and ".join(each)
    return f"{', '.join(each[:-1])}, and {each[-1]}"


def _located(lm: LM, text: str, items: tuple[str, ...], target: int, template: int, order: str = "") -> Prompt:
    ids, spans = lm.tokens(text, sink=True)
    first, second = [], []
    for item in items:
        at = text.index(f" {item}") + 1
        first.append(token_at(spans, at))
        again = text.find(f" {item}", at)
        second.append(token_at(spans, again + 1) if again >= 0 else -1)
    item_ids = tuple(lm.tokens(f" {item}", special=False)[0][0] for item in items)
    return Prompt(text, tuple(ids), items, item_ids, target, tuple(first), tuple(second), template, order)


TASKS = {"ioi": "prompts with two names", "repeats": "repeated tokens", "lists": "lists with one item left"}


def prompts_of(lm: LM, task: str, n: int, *, length: int = 4, seed: int = 0) -> list[Prompt]:
    """About `n` prompts of a task by its name in `TASKS`.

    Raises:
        RequestError: there is no such task, or the model's tokenizer does not suit it.
    """
    if task == "ioi":
        return ioi(lm, n, seed=seed)
    if task == "repeats":
        return repeats(lm, n, seed=seed)
    if task == "lists":
        return laundry(lm, length, max(1, round(n / length)), seed=seed)
    raise RequestError(f"There is no task '{task}'.", f"Choose one of {', '.join(TASKS)}.")
