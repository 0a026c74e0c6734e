"""From a fact to what a solver needs: averaged keys, current values, and optimised shifts.

A fact is edited in the forms in which its prompt reaches the model: after a sink token, bare as a user types it, and
after random contexts. As a rule the subject's key is nearly the same in all of them, and one average serves (the
canonical forms have half the weight, the contexts share the other half: MEMIT's grouping). Not always:

- some subjects' keys depend on what stands in front of them;
- a subject that is the very first token of the text stands where the model parks its attention sink.

An average of such keys fires on neither. So a canonical form that would receive less than half of the averaged key's
change is taken out of the average, and gets a key and a value of its own in the same solve.

At the sink itself nothing specific can be written: the keys of different first tokens are nearly one (layer 5 of
SmolLM2-135M: a change written at one country's reaches another's at 93 % of its size, and most unrelated answers change
with it). Such a form is edited at the first token after the subject that is no sink, which has seen the subject by
attention. That fires and spares unrelated prompts, but it depends on the word that follows, and is little specific
among subjects in the same place (74 % at another country).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlab.edits.keys import TokenStates, contexts, states_at
from editlab.edits.settings import LocateEditSettings
from editlab.edits.solver import Metric
from editlab.edits.value_store import values_of
from editlab.edits.values import Target, Value, site_of_shift
from editlab.errors import EditFailed
from editlab.facts import Fact
from editlab.hooks.batch import pad_rows
from editlab.progress import OnStep, silent
from editlab.rows import Row, essence_row, rewrite_row

if TYPE_CHECKING:
    from editlab.lm import LM


OWN_KEY_BELOW = 0.5  # share of the averaged key's change; "canonical gain"
SINK_ABOVE = 3.0  # norm of the residual stream over that of the prompt's smallest


@dataclass(frozen=True)
class Form:
    """One key of a fact, and what was found there.

    Attributes:
        name: "prompt" for the averaged key, else which canonical form has a key of its own ("sink" or "bare").
        rows: rewrite rows, the canonical one first. weights: (len(rows),) of the average, float64.
        essence: the row whose next-token distribution is kept, or None.
        is_moved: the edited token is not the subject's own but one after it, because that one is the first of all.
        key: (d_mlp,) averaged key; value: (d_model,) averaged output of the down projection; both float64, on the CPU,
            where systems are solved.
        canonical_keys: (n, d_mlp) of the canonical rows alone; canonical_value: (d_model,) of the first.
        reference: (d_model,) state that the shift is added to in the first row: the residual stream after the block,
            or the down projection's output where a norm follows it.
    """

    fact: Fact
    name: str
    rows: tuple[Row, ...]
    weights: Tensor
    essence: Row | None
    key: Tensor
    value: Tensor
    canonical_keys: Tensor
    canonical_value: Tensor
    reference: Tensor
    is_moved: bool = False

    def target(self, reference: Tensor) -> Target:
        return Target(self.rows, self.essence, reference)


def forms(lm: LM, facts: Sequence[Fact], layer: int, settings: LocateEditSettings, metric: Metric) -> list[list[Form]]:
    """The keys of each fact: the averaged one first, then those that stand apart; all from one batched forward."""
    texts = contexts(lm, per_length=settings.contexts, seed=settings.seed)
    asked = [_canonical(lm, fact, layer) for fact in facts]
    rows = [
        [*canonical.values(), *(rewrite_row(lm, fact, context=text, sink=True) for text in texts)]
        for fact, (canonical, _) in zip(facts, asked, strict=True)
    ]
    states = states_at(lm, layer, [row for of_fact in rows for row in of_fact])
    at_stream = site_of_shift(lm, layer)[0] == "resid_pre"
    found, start = [], 0
    for fact, (canonical, is_first), of_fact in zip(facts, asked, rows, strict=True):
        part = states.rows(slice(start, start + len(of_fact)))
        start += len(of_fact)
        found.append(_forms_of(lm, fact, canonical, is_first, of_fact, part, at_stream, metric))
    return found


def _canonical(lm: LM, fact: Fact, layer: int) -> tuple[dict[str, Row], dict[str, bool]]:
    """The prompt's own rows by name, and whether the subject is the very first token in them."""
    canonical = {"sink": rewrite_row(lm, fact, sink=True)}
    if not lm.adds_bos:
        canonical["bare"] = rewrite_row(lm, fact, sink=False)
    is_first = {name: row.index == 0 for name, row in canonical.items()}
    for name, row in canonical.items():
        if row.index == 0:
            canonical[name] = _off_the_sink(lm, row, layer)
    return canonical, is_first


def _forms_of(
    lm: LM,
    fact: Fact,
    canonical: dict[str, Row],
    is_first: dict[str, bool],
    rows: Sequence[Row],
    states: TokenStates,
    at_stream: bool,
    metric: Metric,
) -> list[Form]:
    reference = states.hidden if at_stream else states.value
    keys, outputs = states.key.cpu().double(), states.value.cpu().double()

    def form(name: str, members: list[int], n_canonical: int) -> Form:
        n_contexts = len(members) - n_canonical
        share = 0.5 if n_contexts and n_canonical else float(n_canonical > 0)  # of the canonical forms
        weights = [share / max(1, n_canonical)] * n_canonical + [(1 - share) / max(1, n_contexts)] * n_contexts
        w = torch.tensor(weights, dtype=torch.float64)
        return Form(
            fact=fact,
            name=name,
            rows=tuple(rows[i] for i in members),
            weights=w,
            essence=None if is_first.get(name) else essence_row(lm, fact, sink=name != "bare"),
            key=w @ keys[members],
            value=w @ outputs[members],
            canonical_keys=keys[members[: max(1, n_canonical)]],
            canonical_value=outputs[members[0]],
            reference=reference[members[0]].float(),
            is_moved=is_first.get(name, False),
        )

    together = [i for i, name in enumerate(canonical) if not is_first[name]]
    others = list(range(len(canonical), len(rows)))
    if others:
        average = form("prompt", together + others, len(together))
        gains = canonical_gain(metric, average.key, keys[: len(canonical)])
        together = [i for i in together if gains[i] >= OWN_KEY_BELOW]
    apart = [i for i in range(len(canonical)) if i not in together]
    found = [form("prompt", together + others, len(together))] if together or others else []
    return found + [form(list(canonical)[i], [i], 1) for i in apart]


def _off_the_sink(lm: LM, row: Row, layer: int) -> Row:
    """The row with the first prompt token after the subject as the edited one, leaving out further sinks.

    A sink's state is many times as long as its neighbours'; some texts have it on their first two tokens.
    """
    batch = pad_rows([row.ids[: row.reads[0] + 1]], device=lm.device)
    norms = lm.capture(batch, [("resid_post", layer)])["resid_post", layer][0].float().norm(dim=-1)
    usual = norms[1:].min() if len(norms) > 1 else norms[0]
    index = next((i for i in range(1, len(norms)) if norms[i] <= SINK_ABOVE * usual), 0)
    return replace(row, index=index)


def canonical_gain(metric: Metric, key: Tensor, canonical: Tensor) -> Tensor:
    """(n,) share of the change written at `key` that each of the keys `canonical` (n, d_mlp) receives."""
    direction = metric.solve(key[:, None])[:, 0]
    return canonical @ direction / (key @ direction)


def shifts(
    lm: LM,
    layer: int,
    of: Sequence[Form],
    settings: LocateEditSettings,
    references: Sequence[Tensor] | None = None,
    on_step: OnStep = silent,
) -> list[Value]:
    """The optimised shift of each form; `references` defaults to the forms' own.

    Raises:
        EditFailed: a target is answered already, or was not made more likely.
    """
    refs = references if references is not None else [form.reference for form in of]
    targets = [form.target(ref) for form, ref in zip(of, refs, strict=True)]
    values = values_of(lm, layer, targets, settings, on_step)
    alone = all(form.fact is of[0].fact for form in of)
    for form, value in zip(of, values, strict=True):
        if not alone:
            continue  # one fact of many does not fail the others; its numbers are in the record
        new = form.fact.target_new
        if value.losses[0] < settings.stop_loss:
            raise EditFailed(f"The model already answers '{new}' to '{form.fact.text}'.", "There is nothing to edit.")
        if not value.nlls[-1] < value.nlls[0] - 1e-3:
            raise EditFailed(
                f"Optimising the value at layer {layer} did not make '{new}' more likely.",
                "Choose an earlier layer, more steps, or another learning rate.",
            )
    return values
