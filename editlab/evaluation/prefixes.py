"""What a model says about the rule that joins prompts and targets (see `editlab.joining`).

A fact's prompt and target are joined with a space and without, and the model's log-probabilities of the two whole texts
are compared. Where the rule is not sure, the likelier one is taken, for good. A rule that is sure is kept, and if the
model contradicts it clearly, that is said once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from editlab.evaluation.scorer import force_ids
from editlab.joining import Joint, join
from editlab.progress import OnStep, silent
from editlab.rows import common_length, target_ids

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

CLEARLY = 2.0  # nats
CHECKED = 64  # facts about which the rule is sure, spread over a file


class _Joined(NamedTuple):
    """A prompt and a target in both ways: the ids that both texts begin with, and what each goes on with."""

    common: list[int]
    spaced: list[int]
    touching: list[int]


def settle(lm: LM, facts: Sequence[Fact], on_step: OnStep = silent) -> list[Fact]:
    """The facts, with the unedited model's choice where the rule is not sure."""
    unsure = [i for i, fact in enumerate(facts) if fact.target_prefix_by == "unsure"]
    chosen = dict(zip(unsure, advantages(lm, [facts[i] for i in unsure], on_step), strict=True))
    out = list(facts)
    for i, advantage in chosen.items():
        if advantage is not None:
            # As far as the rule goes, the one choice holds for all of the fact's prompts about which it is not sure.
            prefix = Joint(" " if advantage > 0 else "").prefix
            out[i] = facts[i].model_copy(update={"target_prefix": prefix, "target_prefix_by": "model"})
    return out


def doubts(lm: LM, facts: Sequence[Fact], on_step: OnStep = silent) -> list[str]:
    """What speaks against how these facts are joined, in a sentence each; looks at `CHECKED` of them at most."""
    step = max(1, -(-len(facts) // CHECKED))
    looked_at = list(facts[::step])
    sure = [fact for fact in looked_at if fact.target_prefix_by == "rule"]
    against: list[tuple[float, Fact]] = []
    for fact, advantage in zip(sure, advantages(lm, sure, on_step), strict=True):
        if advantage is not None:
            loss = -advantage if fact.target_prefix == "space" else advantage
            against += [(loss, fact)] if loss > CLEARLY else []
    said = []
    if against:
        loss, fact = max(against, key=lambda pair: pair[0])
        written = "with a space" if fact.target_prefix == "space" else "without a space"
        said.append(
            f"the model finds {len(against)} of {len(sure)} facts that were looked at likelier with the target joined "
            f"the other way, such as '{fact.text}' and '{_answer(fact)}' by {loss:.1f} nats ({written} as it is); "
            "set target_prefix if it is right"
        )
    changed = [fact for fact in looked_at if _changes_the_prompt(lm, fact)]
    if changed:
        said.append(
            f"in {len(changed)} of {len(looked_at)} facts that were looked at the prompt's last token changes by what "
            f"follows it, such as '{changed[0].text}' by '{changed[0].target_new}'; the target's tokens begin there"
        )
    return said


def advantages(lm: LM, facts: Sequence[Fact], on_step: OnStep = silent) -> list[float | None]:
    """By how many nats the unedited model finds each fact likelier with a space than without.

    The true target is asked for where there is one. None where there is nothing to compare.
    """
    if not facts:
        return []
    base = lm.pristine()
    joined = [_both(base, fact) for fact in facts]
    parts = [(j.common, ids) for j in joined if j is not None for ids in (j.spaced, j.touching)]
    scores = iter(force_ids(base, parts, on_step=on_step) if parts else ())
    totals = [None if j is None else [s.nll * len(s.target) for s in (next(scores), next(scores))] for j in joined]
    return [None if pair is None else pair[1] - pair[0] for pair in totals]


def _answer(fact: Fact) -> str:
    return fact.target_true or fact.target_new


def _both(lm: LM, fact: Fact) -> _Joined | None:
    target = _answer(fact)
    if target[0].isspace() or fact.text[-1:].isspace():
        return None
    spaced, touching = (lm.tokens("".join(join(fact.text, target, way)))[0] for way in ("space", "none"))
    cut = common_length(spaced, touching)
    if not cut or cut in (len(spaced), len(touching)):
        return None
    return _Joined(spaced[:cut], spaced[cut:], touching[cut:])


def _changes_the_prompt(lm: LM, fact: Fact) -> bool:
    prompt, _ = target_ids(lm, fact.text, fact.target_new, fact.target_prefix, sink=False)
    return len(prompt) < len(lm.tokens(fact.text)[0])
