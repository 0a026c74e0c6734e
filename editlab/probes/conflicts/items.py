"""Conflict items for one model: what it knows, contradicted, with tokens, spans, splits and corruption partners.

1. Cases that the model does not know are left out (`editlab.evaluation.known`; in a file: greedy decoding must say the
   answer), and those whose closed-book first token is another one under this format's prompt.
2. Known subjects are split; each is contradicted by `draws` answers of other subjects of its split ("known"), or by
   answers of facts that the model does not know ("rare"), drawn with a seed.
3. An item is left out when its answers cannot be told apart by their first token, or when a copy of the subject would
   give one of them. Every reason is counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from editlab.config import MethodConfig
from editlab.data.conflicts import Case, Split, Wording, check_format, split_subjects, texts
from editlab.data.relations import relations
from editlab.errors import RequestError
from editlab.evaluation.known import known
from editlab.evaluation.scorer import force
from editlab.joining import TargetPrefix
from editlab.progress import OnStep, silent
from editlab.rows import target_ids
from editlab.state.saved import Saved

if TYPE_CHECKING:
    from editlab.lm import LM

UNKNOWN = "the model does not say the answer by itself"
GUESSED = "the model says it of any subject"
OTHERWISE = "the model says it, but not under this prompt"
COPIED = "an answer's first token stands in the subject"
SAME = "both answers begin with the same token"
ALIAS = "the other answer is as right"
SPLIT_UP = "the subject's two mentions have different tokens"
ALONE = "no other answer or partner fits"
Kind = Literal["both", "subject", "context"]


class ItemSettings(MethodConfig):
    """How items are made."""

    format: str = Field(
        default="substitution", description="how the context contradicts: see 'editlab conflicts --help'"
    )
    stem: str | None = Field(default=None, description="prompt with {} for the subject; default the relation's")
    draws: int = Field(default=3, ge=1, le=20, description="contradicting answers per subject")
    pool: Literal["known", "rare"] = Field(
        default="known", description="answers of facts that the model knows, or does not"
    )
    subjects: int | None = Field(default=None, ge=6, description="at most so many subjects")
    seed: int = Field(default=0, ge=0, description="seed of the splits and draws")


@dataclass(frozen=True)
class Partner:
    """Subject and context answer of another item, to corrupt with."""

    subject: str
    answer: str


@dataclass(frozen=True)
class Item:
    """A prompt whose context asserts `answer` against the model's own `case.memory`.

    Attributes:
        tok_mem, tok_ctx: first tokens of the two answers. ids: of the prompt. closed: of the prompt without context.
        spans: token ranges [start, stop) of `subj1` and `obj_ctx` (context), `subj2` and `last` (prompt).
        partners: what corrupted prompts are made with.
    """

    case: Case
    answer: str
    wording: Wording
    split: Split
    draw: int
    other: str
    tok_mem: int
    tok_ctx: int
    ids: tuple[int, ...]
    closed: tuple[int, ...]
    spans: dict[str, tuple[int, int]] = field(hash=False)
    partners: tuple[Partner, ...] = ()

    @property
    def id(self) -> str:
        """Unique in its set."""
        return f"{self.case.relation}/{self.case.subject}/{self.draw}"

    @property
    def prompt(self) -> str:
        """Context and question."""
        return self.wording.prompt(self.case.subject, self.answer, self.other)

    @property
    def query(self) -> str:
        """The question alone."""
        return self.wording.query(self.case.subject)

    @property
    def agreeing(self) -> str:
        """The prompt whose context asserts what the model knows."""
        return self.wording.prompt(self.case.subject, self.case.memory, self.other)

    def corrupted(self, kind: Kind, partner: Partner) -> str:
        """The prompt with another subject (destroys memory), another context answer, or both."""
        subject = self.case.subject if kind == "context" else partner.subject
        answer = self.answer if kind == "subject" else partner.answer
        return self.wording.prompt(subject, answer, self.other if self.other != subject else self.case.subject)


@dataclass(frozen=True)
class Items(Saved):
    """The items of one model, relation and format.

    Attributes:
        rejected: how many cases or draws each rule left out. cases: how many there were. known: how many are known.
        candidates: first tokens of all answers, for the closed-set rates.
    """

    items: tuple[Item, ...]
    rejected: dict[str, int]
    cases: int
    known: int
    candidates: tuple[int, ...]
    settings: ItemSettings
    relation: str
    model: str

    def __len__(self) -> int:
        return len(self.items)

    def split(self, name: Split) -> Items:
        """The items of one split."""
        return self.only([item for item in self.items if item.split == name])

    def only(self, items: Sequence[Item]) -> Items:
        """The same set with these items."""
        return Items(
            tuple(items),
            self.rejected,
            self.cases,
            self.known,
            self.candidates,
            self.settings,
            self.relation,
            self.model,
        )

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Of each item, its subject: what intervals resample."""
        return tuple(item.case.subject for item in self.items)

    @property
    def headline(self) -> str:
        """One sentence with the numbers that matter."""
        parts = {name: len({i.case.subject for i in self.items if i.split == name}) for name in _names()}
        shown = ", ".join(f"{n} {name}" for name, n in parts.items())
        return (
            f"{self.relation}, {self.settings.format}: {self.known} of {self.cases} facts known, {len(self)} conflicts "
            f"about {len(set(self.subjects))} subjects ({shown})."
        )


def _names() -> tuple[Split, ...]:
    return ("discovery", "validation", "test")


def build_items(
    lm: LM, cases: Sequence[Case], settings: ItemSettings | None = None, *, on_step: OnStep = silent
) -> Items:
    """Items from cases of one relation or file.

    Raises:
        RequestError: too few subjects remain to be split.
    """
    settings = settings or ItemSettings()
    rejected: Counter[str] = Counter()
    kept = _known(lm, cases, settings, rejected, on_step)
    n_known = len(kept)
    order = sorted(kept, key=lambda case: case.subject)
    random.Random(f"{settings.seed} subjects").shuffle(order)
    order = order[: settings.subjects]
    splits = split_subjects([case.subject for case in order], settings.seed)
    rare = [case for case in cases if case not in kept] if settings.pool == "rare" else []
    made: list[Item] = []
    first = _FirstTokens(lm)
    for case in order:
        made += _items_of(first, case, order, rare, splits, settings, rejected)
    tokens = {first(_wording(case, settings), case.memory, case.subject) for case in cases}
    found = Items(
        tuple(made),
        {k: n for k, n in rejected.items() if n},
        len(cases),
        n_known,
        tuple(sorted(tokens)),
        settings,
        cases[0].relation,
        lm.name,
    )
    missing = [name for name in _names() if not any(item.split == name for item in made)]
    if missing:
        reasons = "; ".join(f"{n} {reason}" for reason, n in rejected.most_common(3))
        raise RequestError(
            f"Of {len(cases)} facts {lm.name} knows {n_known}, which leaves no conflict for {', '.join(missing)} "
            f"({reasons}).",
            "Try another stem, relation or model; at least six known subjects are needed.",
        )
    return found


def _wording(case: Case, settings: ItemSettings, variant: int = 0) -> Wording:
    known_texts = texts().get(case.relation) if not case.stem else None
    stem = case.stem or settings.stem or (known_texts.stem if known_texts else "")
    return Wording(stem, check_format(settings.format), known_texts, variant, case.target_prefix)


def _known(
    lm: LM, cases: Sequence[Case], settings: ItemSettings, rejected: Counter[str], on_step: OnStep
) -> list[Case]:
    """The cases whose answer the model gives by itself."""
    queries = {case: _wording(case, settings).query(case.subject) for case in cases}
    if not cases[0].stem:
        asked = known(lm, relations()[cases[0].relation], _wording(cases[0], settings).stem, on_step=on_step)
        said = {row.subject for row in asked.rows}
        kept = [case for case in cases if case.subject in said]
        rejected.update({UNKNOWN: asked.not_said, GUESSED: asked.guessed})
        if settings.format != "question":
            return kept
        forced = force(lm, [(queries[case], case.memory, case.target_prefix) for case in kept], on_step=on_step)
        still = [case for case, f in zip(kept, forced, strict=True) if f.predicted[0] == f.target[0]]
        rejected[OTHERWISE] += len(kept) - len(still)
        return still
    forced = force(lm, [(queries[case], case.memory, case.target_prefix) for case in cases], on_step=on_step)
    kept = [case for case, f in zip(cases, forced, strict=True) if f.is_argmax]
    rejected[UNKNOWN] += len(cases) - len(kept)
    return kept


def _items_of(
    first: _FirstTokens,
    case: Case,
    pool: Sequence[Case],
    rare: Sequence[Case],
    splits: dict[str, Split],
    settings: ItemSettings,
    rejected: Counter[str],
) -> list[Item]:
    rng = random.Random(f"{settings.seed} {case.relation} {case.subject}")
    split = splits[case.subject]
    lm, plain = first.lm, _wording(case, settings)
    tok_mem = first(plain, case.memory, case.subject)
    inside = set(lm.tokens(f"x {case.subject}", special=False)[0][1:]) | set(lm.tokens(case.subject, special=False)[0])
    if tok_mem in inside:
        rejected[COPIED] += 1
        return []
    same = [other for other in pool if splits[other.subject] == split and other.subject != case.subject]
    # A split of two or three has no two others to corrupt with; test subjects are never used for that.
    near = same if len(same) > 2 else [o for o in pool if o.subject != case.subject and splits[o.subject] != "test"]
    answers = [case.against] if case.against else sorted({other.memory for other in (rare or same)})
    fitting = []
    for answer in answers:
        tok_ctx = first(plain, answer, case.subject)
        if tok_ctx == tok_mem:
            rejected[SAME] += bool(case.against)
        elif answer in (case.memory, *case.aliases):
            rejected[ALIAS] += bool(case.against)
        elif tok_ctx in inside:
            rejected[COPIED] += bool(case.against)
        else:
            fitting.append((answer, tok_ctx))
    rng.shuffle(fitting)
    made = []
    for draw, (answer, tok_ctx) in enumerate(fitting[: settings.draws]):
        wording = _wording(case, settings, draw)
        partners = _partners(first, plain, near, {tok_mem, tok_ctx}, rng)
        other = partners[0].subject if partners else same[0].subject if same else ""
        if not other:
            continue
        item = _encode(lm, case, answer, wording, split, draw, other, tok_mem, tok_ctx, tuple(partners))
        if item is None:
            rejected[SPLIT_UP] += 1
        else:
            made.append(item)
    if not made and not case.against:
        rejected[ALONE] += 1
    return made


def _partners(
    first: _FirstTokens, plain: Wording, same: Sequence[Case], taken: set[int], rng: random.Random, n: int = 2
) -> list[Partner]:
    """Other subjects and answers whose first tokens are unlike both answers of the item."""
    fitting = [other for other in same if first(plain, other.memory, other.subject) not in taken]
    rng.shuffle(fitting)
    found = []
    for other in fitting[:n]:
        answers = [o.memory for o in fitting if o.memory != other.memory]
        if answers:
            found.append(Partner(other.subject, rng.choice(answers)))
    return found


def _encode(
    lm: LM,
    case: Case,
    answer: str,
    wording: Wording,
    split: Split,
    draw: int,
    other: str,
    tok_mem: int,
    tok_ctx: int,
    partners: tuple[Partner, ...],
) -> Item | None:
    evidence, query = wording.evidence(case.subject, answer, other), wording.query(case.subject)
    prompt = f"{evidence} {query}"
    ids, chars = lm.tokens(prompt)
    places = {
        "subj1": (evidence.find(other if wording.format == "irrelevant" else case.subject), case.subject),
        "obj_ctx": (evidence.rfind(answer), answer),
        "subj2": (len(evidence) + 1 + query.rfind(case.subject), case.subject),
    }
    if wording.format == "irrelevant":
        places["subj1"] = (evidence.find(other), other)
    spans = {}
    for name, (start, text) in places.items():
        inside = [i for i, (a, b) in enumerate(chars) if b > a and a < start + len(text) and b > start]
        spans[name] = (inside[0], inside[-1] + 1)
    spans["last"] = (len(ids) - 1, len(ids))
    if wording.format in ("substitution", "repeated"):
        first, second = (ids[slice(*spans[name])] for name in ("subj1", "subj2"))
        if first != second:
            return None
    closed, _ = lm.tokens(query)
    return Item(case, answer, wording, split, draw, other, tok_mem, tok_ctx, tuple(ids), tuple(closed), spans, partners)


class _FirstTokens:
    """First tokens of answers. The prompt's last words come from the stem, so one prompt of a stem serves for all."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.prompts: dict[str, str] = {}
        self.found: dict[tuple[str, str, TargetPrefix], int] = {}

    def __call__(self, wording: Wording, answer: str, subject: str) -> int:
        stem, prefix = wording.query_stem, wording.target_prefix
        if (stem, answer, prefix) not in self.found:
            prompt = self.prompts.setdefault(stem, wording.query(subject))
            self.found[stem, answer, prefix] = target_ids(self.lm, prompt, answer, prefix, sink=False)[1][0]
        return self.found[stem, answer, prefix]
