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
from functools import cached_property
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
from editlab.rows import Row, essence_row, rewrite_row, rewrite_rows

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
        scale: (d_model,) state of the first row that clamp and decay are relative to.
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
    scale: Tensor
    is_moved: bool = False

    @property
    def target(self) -> Target:
        return Target(self.rows, self.essence, self.scale)


def forms(lm: LM, facts: Sequence[Fact], layer: int, settings: LocateEditSettings, metric: Metric) -> list[list[Form]]:
    """The keys of each fact: the averaged one first, then those that stand apart; all from one batched forward."""
    texts = contexts(lm, per_length=settings.contexts, seed=settings.seed, begin=settings.forms)
    released = settings.forms != "both"
    canonical = [_as_tokenized(lm, fact) if released else _canonical(lm, fact, layer) for fact in facts]
    rows = [
        [*own.values(), *rewrite_rows(lm, fact, texts, sink=not released)]
        for fact, (own, _) in zip(facts, canonical, strict=True)
    ]
    states = states_at(lm, layer, [row for of_fact in rows for row in of_fact])
    found, start = [], 0
    for fact, (own, is_first), of_fact in zip(facts, canonical, rows, strict=True):
        part = states.rows(slice(start, start + len(of_fact)))
        start += len(of_fact)
        source = _Rows(lm, fact, own, of_fact, part, layer, settings)
        found.append([source.form("prompt", range(len(of_fact)), 1)] if released else source.forms(is_first, metric))
    return found


def _as_tokenized(lm: LM, fact: Fact) -> tuple[dict[str, Row], dict[str, bool]]:
    """The prompt's one row in the released code, which puts nothing in front that the tokenizer does not."""
    return {"bare": rewrite_row(lm, fact, sink=False)}, {}


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


@dataclass(frozen=True)
class _Rows:
    """A fact's rows, the `canonical` ones first, and what the edit layer's MLP does at the edited token of each."""

    lm: LM
    fact: Fact
    canonical: dict[str, Row]
    rows: Sequence[Row]
    states: TokenStates
    layer: int
    settings: LocateEditSettings

    @cached_property
    def keys(self) -> Tensor:
        return self.states.key.cpu().double()

    @cached_property
    def outputs(self) -> Tensor:
        return self.states.value.cpu().double()

    def forms(self, is_first: dict[str, bool], metric: Metric) -> list[Form]:
        """The averaged key, without the canonical rows that it would not serve, and one for each of those."""
        together = [i for i, name in enumerate(self.canonical) if not is_first[name]]
        others = list(range(len(self.canonical), len(self.rows)))
        if others:
            average = self.form("prompt", together + others, len(together))
            gains = canonical_gain(metric, average.key, self.keys[: len(self.canonical)])
            together = [i for i in together if gains[i] >= OWN_KEY_BELOW]
        apart = [i for i in range(len(self.canonical)) if i not in together]
        found = [self.form("prompt", together + others, len(together))] if together or others else []
        names = list(self.canonical)
        return found + [self.form(names[i], [i], 1, is_moved=is_first[names[i]]) for i in apart]

    def form(self, name: str, members: Sequence[int], n_canonical: int, *, is_moved: bool = False) -> Form:
        """The rows at `members`, the first `n_canonical` of which are canonical, as one key."""
        members, states = list(members), self.states
        at_stream = site_of_shift(self.lm, self.layer)[0] == "resid_pre"
        to_output = self.settings.relative_to == "output"
        w = torch.tensor(self._weights(len(members), n_canonical), dtype=torch.float64)
        own = {"prompt": next(iter(self.canonical))}.get(name, name)
        return Form(
            fact=self.fact,
            name=name,
            rows=tuple(self.rows[i] for i in members),
            weights=w,
            essence=None if is_moved else essence_row(self.lm, self.fact, sink=own != "bare"),
            key=w @ self.keys[members],
            value=w @ self.outputs[members],
            canonical_keys=self.keys[members[: max(1, n_canonical)]],
            canonical_value=self.outputs[members[0]],
            reference=(states.hidden if at_stream else states.value)[members[0]].float(),
            scale=(states.hidden if at_stream and not to_output else states.value)[members[0]].float(),
            is_moved=is_moved,
        )

    def _weights(self, n: int, n_canonical: int) -> list[float]:
        if self.settings.forms == "rome":
            return [1 / n] * n
        n_contexts = n - n_canonical
        share = 0.5 if n_contexts and n_canonical else float(n_canonical > 0)  # of the canonical forms
        return [share / max(1, n_canonical)] * n_canonical + [(1 - share) / max(1, n_contexts)] * n_contexts


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
    on_step: OnStep = silent,
) -> list[Value]:
    """The optimised shift of each form.

    Raises:
        EditFailed: a target is answered already, or was not made more likely.
    """
    values = values_of(lm, layer, [form.target for form in of], settings, on_step)
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
