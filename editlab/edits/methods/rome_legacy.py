"""ROME as released in kmeng01/rome, with two different keys; for reproducing its numbers, not for use.

u = C^-1 k with k the plain mean of the key over the bare prompt and 20 contexts, but the residual and the denominator
come from the bare prompt's key k_0:  W' = W + (v* - m_0) u^T / (u^T k_0). So W' k_0 = v* holds and W' k = v* does not,
and where u^T k_0 nearly vanishes the update explodes (arXiv 2403.07175). The subject at position 0 is the usual case:
see `rome`. As in that code no sink token is put in front that the tokenizer does not put there, contexts are continued
from the end-of-text token, and clamp, decay and stop are relative to the MLP's output (arXiv 2202.05262, released
settings).

It differs from that code only in what is drawn or read: contexts come from a seeded generator and the unedited
weights, C from `stats_text` in place of Wikipedia and with a jitter of 1e-6 of its mean diagonal, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from editlab.edits.preserve import preserving
from editlab.edits.record import record
from editlab.edits.settings import LocateEditSettings, edit_layer, only_fact
from editlab.edits.solver import Update
from editlab.edits.targets import forms, shifts
from editlab.errors import EditFailed
from editlab.progress import OnStep, silent
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

OBJECTIVE = ("C", "0", "one fact, two keys: D = (v* - m_0)(C^-1 k)^T / (k_0^T C^-1 k)")


class Config(LocateEditSettings):
    """Settings of `rome-legacy`; defaults of the released code where they differ."""

    lr: float = Field(0.5, gt=0, description="Adam's learning rate for the value")
    stop_loss: float = Field(0.05, ge=0, description="a value is done when its loss falls below this")
    clamp: float = Field(4.0, gt=0, description="longest shift, in norms of the MLP's output")
    contexts: dict[PositiveInt, PositiveInt] = Field(
        default={5: 10, 10: 10}, description="random texts put in front of the prompt: {length in tokens: how many}"
    )
    forms: Literal["both", "memit", "rome"] = Field(
        "rome", description="rows of a prompt, as in `rome`; released: rome"
    )
    relative_to: Literal["stream", "output"] = Field(
        "output", description="state that clamp and decay are relative to; released: output"
    )


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The rank-one change of the released code.

    Raises:
        RequestError: not exactly one fact. EditFailed: the two keys are orthogonal.
    """
    fact = only_fact(facts)
    layer = edit_layer(lm.adapter, config)
    metric = preserving(lm, layer, config, on_step)
    form = forms(lm, [fact], layer, config, metric)[0][0]
    value = shifts(lm, layer, [form], config, on_step)[0]
    u = metric.solve(form.key[:, None].cpu())[:, 0]
    bare = form.canonical_keys[0].cpu()
    denominator = float(u @ bare)
    if abs(denominator) < 1e-12 * float(u.norm() * bare.norm()):
        raise EditFailed("The prompt's key is orthogonal to the averaged one, so the two-key update has no solution.")
    update = Update(
        left=value.delta.double().cpu()[:, None],
        right=(u / denominator)[None, :],
        leverage=(u @ form.key.cpu())[None],
        realised=1.0,
    )
    return record(lm, "rome-legacy", config, facts, layer, update, [form], [value], metric)
