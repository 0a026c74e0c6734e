"""Does a channel do anything? Intervene on its edge and on its source, beside matched controls.

For a channel A.i -> B, on prompts with a known answer:

1. weights: its score against the backward null, and its rank among B's earlier writers (`scan.py`).
2. edge: A.i's part is removed from what B alone reads (`paths.py`). Effect = B's margin before minus after, positive
   where the component was producing it; for values, which do not change where B attends, the logit difference.
3. node: A.i is removed everywhere, as the edit of the weights does; the same effect, and that on the logit difference.
4. controls, at least 20: other components of A, components of the same rank of other earlier heads, random directions
   that A can write; for a whole head other heads. An effect counts if its 95 % interval (over templates, and prompts
   within them) leaves out 0, if it is significant with its p corrected for all channels tested together, and if it is
   larger than 95 % of the controls' effects.
5. harm: KL at END, and perplexity of neutral prose before and after.

    verified     weights, edge and node all hold
    edge-only    the edge does something, the rest does not hold
    not shown    intervening on the edge does nothing that could be told from chance or from controls: too few prompts,
                 or no channel
    refuted      the edge does next to nothing: the whole 95 % interval of its effect lies within the equivalence bound,
                 a share of what there is to take away (`Config.equivalence` times the reader's margin)
    weight-only  no one has intervened

Where the edge does much and the node little, later heads make up for what is lost (self-repair).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from editlab.config import MethodConfig
from editlab.errors import RequestError
from editlab.evaluation.statistics import adjusted
from editlab.probes.channels.components import Writer, writer
from editlab.probes.channels.controls import control_heads, control_writers
from editlab.probes.channels.harm import perplexity_with
from editlab.probes.channels.intervals import sign_flips
from editlab.probes.channels.parts import Channel, Part
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.scan import Scan
from editlab.probes.channels.tasks import Prompt
from editlab.probes.channels.verdicts import Effect, Verdict, Verdicts
from editlab.probes.channels.weights import layer_heads
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.lm import LM


class Config(MethodConfig):
    """How channels are tested."""

    controls: int = Field(default=24, ge=20, le=200, description="matched random controls of each intervention")
    passages: int = Field(default=6, ge=0, le=200, description="passages of prose for perplexity; 0: not measured")
    seed: int = Field(default=0, ge=0, description="of controls and intervals")
    equivalence: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of the reader's margin that an effect must stay below to be refuted",
    )


def verify(
    lm: LM,
    channels: Sequence[Channel],
    prompts: Sequence[Prompt],
    scan: Scan,
    config: Config | None = None,
    on_step: OnStep = silent,
    *,
    task: str = "these prompts",
) -> Verdicts:
    """Intervene on each channel.

    Args:
        scan: of the same weights; its null says whether a channel is an outlier, its components name the sources.

    Raises:
        RequestError: there is no channel or no prompt. ConfigError: a norm stands behind attention.
    """
    config = config or Config()
    if not channels or not prompts:
        raise RequestError("There is nothing to test.", "Give channels and prompts.")
    setting = Setting(lm, prompts)
    for mode in dict.fromkeys(c.mode for c in channels):
        targets = {c.target.layer for c in channels if c.mode == mode}
        setting.frozen(targets, setting.batch.width - 1 if mode == "q" else 0)
    sources = list(dict.fromkeys(c.source for c in channels))
    nodes: dict[Part, dict[Channel, tuple[Effect, Effect]]] = {}
    harm: dict[Part, tuple[float, tuple[float, float]]] = {}
    total = len(sources) + len(channels)
    for i, source in enumerate(sources):
        on_step(StepInfo("testing channels", i, total, "interventions", f"{source} removed"))
        of = [c for c in channels if c.source == source]
        nodes[source], kl = _node(setting, source, of, scan, config)
        harm[source] = kl, perplexity_with(lm, source, config.passages)
    tested = []
    for i, channel in enumerate(channels):
        on_step(StepInfo("testing channels", len(sources) + i, total, "interventions", str(channel)))
        edge = _edge(setting, channel, scan, config)
        node, answer = nodes[channel.source][channel]
        weights, is_outlier = _weights(scan, channel)
        bound = config.equivalence * abs(edge.base)
        tested.append(Verdict(channel, weights, edge, node, answer, *harm[channel.source], is_outlier, bound))
    on_step(StepInfo("testing channels", total, total, "interventions"))
    return Verdicts(_corrected(tested), task, config.model_dump(mode="json"), lm.name)


def screen(
    lm: LM, channels: Sequence[Channel], prompts: Sequence[Prompt], scan: Scan, on_step: OnStep = silent
) -> list[tuple[Channel, float]]:
    """Edge effects of many channels without controls, to choose which to test on other prompts; largest first."""
    setting = Setting(lm, prompts)
    found = []
    by_reader: dict[tuple[Part, Any], list[Channel]] = {}
    for c in channels:
        by_reader.setdefault((c.target, c.mode), []).append(c)
    for i, ((target, mode), some) in enumerate(by_reader.items()):
        on_step(StepInfo("screening edges", i, len(by_reader), "readers", str(target)))
        cut = setting.batch.width - 1 if mode == "q" else 0
        setting.frozen([t.layer for t, m in by_reader if m == mode], cut)
        changes = _changes(setting, [_source(setting.lm, c.source, scan) for c in some], mode == "q")
        edges = setting.edges(target, mode, changes)
        value = edges.margin if edges.difference is None else edges.difference
        found += list(zip(some, (value[0] - value[1:]).mean(1).tolist(), strict=True))
    on_step(StepInfo("screening edges", len(by_reader), len(by_reader), "readers"))
    return sorted(found, key=lambda x: -abs(x[1]))


@dataclass(frozen=True)
class _Removed:
    """A part of a head's output that is taken away: along a writer's directions, or all of it."""

    layer: int
    head: int
    writer: Writer | None = None

    def patch(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z) if self.writer is None else self.writer.scaled(0.0)(z)


def _source(lm: LM, part: Part, scan: Scan) -> _Removed:
    if part.component is None:
        return _Removed(part.layer, part.head)
    direction = scan.factors.v[scan.factors.index(part), part.component][None]
    return _Removed(part.layer, part.head, writer(lm, part.whole, direction))


def _changes(setting: Setting, removed: Sequence[_Removed], at_end: bool) -> list[Tensor]:
    """What taking each away adds to the residual stream: (P, d) at END or (P, T, d)."""
    layers = sorted({r.layer for r in removed})
    z = setting.read([("z", layer) for layer in layers], at_end)
    heads = {layer: layer_heads(setting.lm, layer) for layer in layers if any(r.writer is None for r in removed)}
    found = []
    for r in removed:
        own = z["z", r.layer][..., r.head, :].float()
        if r.writer is None:
            found.append(-own @ heads[r.layer].o[r.head])
        else:
            found.append(-r.writer.coordinates(own) @ r.writer.directions.to(own))
    return found


def _edge(setting: Setting, channel: Channel, scan: Scan, config: Config) -> Effect:
    lm, source, seed = setting.lm, channel.source, config.seed
    if source.component is None:
        near = control_heads(lm, source, channel.target.layer, config.controls, seed)
        others = [_Removed(part.layer, part.head) for part in near]
    else:
        writers = control_writers(lm, source, channel.target.layer, scan.factors, config.controls, seed)
        others = [_Removed(w.layer, w.head, w) for w in writers]
    changes = _changes(setting, [_source(lm, source, scan), *others], channel.mode == "q")
    edges = setting.edges(channel.target, channel.mode, changes)
    return _effect(edges.margin if edges.difference is None else edges.difference, setting, seed)


def _node(
    setting: Setting, source: Part, channels: Sequence[Channel], scan: Scan, config: Config
) -> tuple[dict[Channel, tuple[Effect, Effect]], float]:
    """Effects on each channel's reader and on the answer; KL at END."""
    lm, seed = setting.lm, config.seed
    if source.component is None:
        last = min(c.target.layer for c in channels)
        near = control_heads(lm, source, last, config.controls, seed, close=True)
        others = [_Removed(part.layer, part.head) for part in near]
    else:
        writers = control_writers(lm, source, source.layer + 1, scan.factors, config.controls, seed, same_layer=True)
        others = [_Removed(w.layer, w.head, w) for w in writers]
    removed = [_source(lm, source, scan), *others]
    found = setting.nodes([c.target for c in channels], [(r.layer, r.head, r.patch) for r in removed])
    answer = _effect(found.difference, setting, seed)
    out = {}
    for i, channel in enumerate(channels):
        reader = answer if channel.mode == "v" else _effect(found.margin[:, i], setting, seed)
        out[channel] = reader, answer
    return out, float(found.kl[1])


def _effect(values: np.ndarray, setting: Setting, seed: int) -> Effect:
    """From (2 + C, P): unchanged, the intervention, the controls."""
    change = values[0] - values[1:]
    p = sign_flips(change[0], seed=seed)
    return Effect(change[0], setting.groups, float(values[0].mean()), change[1:].mean(1), p, seed)


def _weights(scan: Scan, channel: Channel) -> tuple[dict[str, float], bool]:
    if channel.mode not in scan.compositions:
        return {"score": float("nan"), "rank": float("nan"), "weight_p": float("nan")}, False
    score, rank, p = scan.look_up(channel)
    is_outlier = p < scan.config.p and rank <= scan.config.rank
    return {"score": score, "rank": rank, "weight_p": p}, is_outlier


def _corrected(tested: list[Verdict]) -> list[Verdict]:
    """With the q-values of edges, nodes and answers, each over all channels tested together."""
    for name in ("edge", "node", "answer"):
        q = adjusted([getattr(t, name).p for t in tested])
        tested = [replace(t, **{name: replace(getattr(t, name), q=value)}) for t, value in zip(tested, q, strict=True)]
    return tested
