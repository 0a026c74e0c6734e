"""Recognition, recall and retention of texts that were seen a few times (arXiv 2303.17557).

1. For every kind of pair, seed and direction: study one text of each pair for E passes, in an order drawn per pass, and
   probe all texts before and after each pass. Passes are nested in one run, so the model after two passes is the one
   that goes on to the third.
2. Then train on filler that shares nothing with the texts, and probe at the times asked for. The optimiser is made anew
   there, as the paper's code does without saying so, or goes on.
3. The second direction studies the foils, with the same order and the same filler.

The probes before any study are the same for both directions, and are read once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from editlab.data.stimuli import Stimuli, filler, read_stimuli, stimuli
from editlab.errors import ConfigError
from editlab.probes.memory.reading import LEAST, Ids, Reading, read
from editlab.probes.memory.recall import continuations, rouge, rouge_l, targets
from editlab.progress import OnStep, silent
from editlab.runs.memory.course import Course, Phase, Row
from editlab.runs.memory.learner import Learner
from editlab.runs.memory.settings import StudySettings, TrainingSettings

if TYPE_CHECKING:
    from editlab.lm import LM

SPOILT = 2.0  # nats by which the foils' mean loss may rise


@dataclass(frozen=True)
class Items:
    """Pairs as token ids; `a[i]` and `b[i]` are each other's foils.

    Attributes:
        dropped: pairs with a text of fewer than `LEAST` tokens.
    """

    stimuli: Stimuli
    a: tuple[Ids, ...]
    b: tuple[Ids, ...]
    dropped: int

    @property
    def rows(self) -> tuple[Ids, ...]:
        """All a, then all b."""
        return self.a + self.b


def items_of(lm: LM, found: Stimuli, block: int) -> Items:
    """The pairs that are long enough, each text cut to `block` tokens.

    Raises:
        ConfigError: fewer than two are left.
    """
    rows = [tuple(ids_of(lm, text, block) for text in (p.a, p.b)) for p in found.pairs]
    kept = [(a, b) for a, b in rows if min(len(a), len(b)) >= LEAST]
    if len(kept) < 2:
        raise ConfigError(
            f"Only {len(kept)} pairs of '{found.kind}' have {LEAST} tokens in both texts.", "Give longer texts."
        )
    return Items(found, tuple(a for a, _ in kept), tuple(b for _, b in kept), len(rows) - len(kept))


def ids_of(lm: LM, text: str, block: int) -> Ids:
    """A text's ids, the tokenizer's own BOS in front if it has one."""
    return tuple(lm.tokens(text)[0][:block])


def study_courses(lm: LM, settings: StudySettings, on_step: OnStep = silent) -> list[Course]:
    """The courses of a study, laid out in full.

    Raises:
        ConfigError: a file cannot be used, or the filler is too short.
    """
    courses = []
    for kind in (settings.file or "",) if settings.file else settings.kinds:
        for i in range(settings.seeds):
            seed = settings.seed + i
            found = (
                read_stimuli(Path(kind), settings.items, seed) if settings.file else stimuli(kind, settings.items, seed)
            )
            items = items_of(lm, found, settings.block)
            later = filler_batches(lm, settings, max(settings.times, default=0), seed, found.texts)
            before: dict[str, list[Reading]] = {}
            for direction in ("a", "b") if settings.counterbalance else ("a",):
                courses.append(study_course(items, later, settings, seed, direction, before))
    return courses


def filler_batches(
    lm: LM,
    settings: TrainingSettings,
    updates: int,
    seed: int,
    apart_from: Sequence[str],
    without: frozenset[Ids] = frozenset(),
) -> tuple[tuple[Ids, ...], ...]:
    """Batches of distinct filler sentences for so many updates.

    Args:
        apart_from: texts with which they share no eight words in a row. without: sentences that are left out.
    """
    if not updates:
        return ()
    size = settings.filler_batch
    texts = filler(updates * size + len(without), seed, settings.filler_text, apart_from=apart_from)
    found = [ids_of(lm, text, settings.block) for text in texts]
    rows = [row for row in found if row not in without][: updates * size]
    return tuple(tuple(rows[i : i + size]) for i in range(0, len(rows), size))


def exposure_batches(rows: Sequence[Ids], exposures: int, batch: int, seed: int) -> tuple[tuple[Ids, ...], ...]:
    """So many passes over the rows, each in an order of its own."""
    rng = random.Random(f"study {seed}")
    batches = []
    for _ in range(exposures):
        order = rng.sample(range(len(rows)), len(rows))
        batches += [tuple(rows[i] for i in order[s : s + batch]) for s in range(0, len(order), batch)]
    return tuple(batches)


def study_course(
    items: Items,
    later: tuple[tuple[Ids, ...], ...],
    settings: StudySettings,
    seed: int,
    direction: str,
    before: dict[str, list[Reading]],
) -> Course:
    """Study one side of the pairs, then train on filler.

    Args:
        later: filler batches. direction: "a" or "b", the side that is studied.
        before: filled at the first probe with the readings under the unstudied model, for the other direction.
    """
    studied, foils = (items.a, items.b) if direction == "a" else (items.b, items.a)
    study = exposure_batches(studied, settings.exposures, settings.batch, seed)
    each = len(study) // settings.exposures
    end = len(study)
    phases = [Phase(study, settings.lr)]
    if later:
        phases.append(Phase(later, settings.later_lr, settings.opt_state))
    probes = (*(e * each for e in range(settings.exposures + 1)), *(end + t for t in settings.times))
    state: dict[int, Row] = {e * each: {"exposure": e, "t": None} for e in range(settings.exposures)}
    state |= {end + t: {"exposure": settings.exposures, "t": t} for t in (0, *settings.times)}
    where = {"kind": items.stimuli.kind, "seed": seed, "direction": direction}
    return Course(
        name=f"{items.stimuli.kind}, seed {seed}, studies {direction}",
        phases=tuple(phases),
        probes=probes,
        measure=partial(_measure, items=items, direction=direction, where=where, state=state, before=before,
                        generates=_generates(settings, each, end)),
        forbidden=frozenset(foils),
        reads=max(map(len, items.rows)),
        spoilt=_spoilt,
    )  # fmt: skip


def _generates(settings: StudySettings, each: int, end: int) -> Callable[[int], bool]:
    """At which updates what is not recalled is generated: before the study, after one pass, at its end, at the end."""
    chosen = {0, each, end, end + max(settings.times, default=0)} if settings.rouge else set()
    return chosen.__contains__


def _measure(
    learner: Learner, update: int, *, items: Items, direction: str, where: Row, state: dict[int, Row],
    before: dict[str, list[Reading]], generates: Callable[[int], bool],
) -> list[Row]:  # fmt: skip
    if "base" not in before:
        # What a run that is gone on with lacks is read again: from the source, which is what update 0 is.
        before["base"] = read(learner.source, items.rows)
    now = before["base"] if update == 0 else read(learner.lm, items.rows)
    said = _said(learner.lm, items.rows, now) if generates(update) else [{}] * len(now)
    n = len(items.a)
    return [
        {
            **where,
            **state[update],
            "item": i % n,
            "role": "studied" if (i < n) == (direction == "a") else "foil",
            **reading.to_record(),
            "base_loss": base.loss,
            **more,
        }
        for i, (reading, base, more) in enumerate(zip(now, before["base"], said, strict=True))
    ]


def _said(lm: LM, rows: Sequence[Ids], now: Sequence[Reading]) -> list[Row]:
    pairs = zip(continuations(lm, rows, now), targets(lm, rows), strict=True)
    return [
        {"rouge2": 1.0 if r.exact else rouge(said, wanted), "rougeL": 1.0 if r.exact else rouge_l(said, wanted),
         "said": said}
        for r, (said, wanted) in zip(now, pairs, strict=True)
    ]  # fmt: skip


def _spoilt(rows: list[Row]) -> str:
    rises = [row["loss"] - row["base_loss"] for row in rows if row["role"] == "foil"]
    rise = sum(rises) / len(rises)
    return f"the foils' loss rose by {rise:.1f} nats: the model is damaged, use a smaller lr" if rise > SPOILT else ""
