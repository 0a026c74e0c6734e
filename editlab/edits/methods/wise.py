"""WISE: edits in a side memory that answers only the prompts it is for (arXiv 2405.14768).

One value matrix W gets a side copy, kept as its difference D = W' - W. Edits train D, on a random share of its entries
that is drawn anew for every shard of edits; shards are merged. A router decides for each prompt whether the side memory
or the model as it is answers (`editlab.memories.kinds.wise`). No weight changes: what is not routed is the model's own
answer, bit for bit.

Departures from the released code, each for a reason: no weight decay (it escaped the mask), masks with an exact count,
the threshold computed afresh after every edit, irrelevant texts drawn from a pool instead of one an edit, the
indicator on the prompt alone, and Adam, because plain steps that are small enough to be stable do not move a small
model.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from editlab.config import MethodConfig
from editlab.edits.irrelevant import near, pool, subjects
from editlab.edits.keys import contexts
from editlab.edits.settings import memory_layer
from editlab.edits.side_training import Inputs, Rows, inputs_of, kept_inputs_of, train
from editlab.errors import RequestError
from editlab.memories.kinds.wise import Routing, mask_of, pack, shards_of
from editlab.memories.merges import MERGES
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import rewrite_row
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


REPLAYED = 4  # earlier edits that the steps of one edit draw from, per edit that a step replays


class Config(MethodConfig):
    """Settings of `wise`."""

    layer: int | None = Field(None, ge=0, description="layer whose value matrix gets a side memory; default by model")
    steps: int = Field(50, ge=1, le=1000, description="steps an edit at most (released code: 30 to 70)")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate")
    density: float = Field(0.2, gt=0, le=1, description="share of the matrix that a shard may change (paper: 0.2)")
    shard_size: int = Field(50, ge=1, description="edits of a shard (paper: 500)")
    merge_every: int = Field(2, ge=1, description="shards that are merged (paper: 2)")
    mode: Literal["merge", "retrieve"] = Field("merge", description="one merged bank for all, or a bank per merge")
    merge: str = Field("ties", description=f"how shards are merged: {', '.join(MERGES)}")
    merge_density: float = Field(0.53, gt=0, le=1, description="of ties, magnitude and dare (released code: 0.53)")
    indicator: Literal["absolute", "relative", "reference"] = Field(
        "relative", description="what routes: the paper's, that over the plain output's, or the released code's"
    )
    ratio: float = Field(0.8, gt=0, le=1, description="threshold, in units of the lowest indicator of the edits")
    alpha: float = Field(0.15, description="irrelevant texts stay below (paper, absolute: 5)")
    beta: float = Field(1.0, description="edits stay above (paper, absolute: 20)")
    gamma: float = Field(0.6, description="distance between the two (paper, absolute: 10)")
    margin_weight: float = Field(50.0, ge=0, description="of the margin loss (paper, absolute: 1)")
    negatives: int = Field(16, ge=0, description="irrelevant texts a step")
    pool: int = Field(128, ge=1, description="irrelevant texts to draw from")
    near: int = Field(8, ge=0, description="the edit's prompt about so many other subjects, in every step")
    replay: int = Field(2, ge=0, description="earlier edits of the shard that a step trains again")
    replay_weight: float = Field(1.0, ge=0, description="of their loss")
    stop_nll: float = Field(0.02, ge=0, description="training ends below this loss, if the margins hold")
    stop_margin: float = Field(0.01, ge=0, description="margin loss at which they do")
    contexts: dict[PositiveInt, PositiveInt] = Field(
        default={5: 5, 10: 5}, description="random texts put in front of the prompt: {length in tokens: how many}"
    )
    seed: int = Field(0, ge=0, description="of masks, contexts and draws")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """The part of the side memory that the facts make, one after the other.

    Raises:
        RequestError: there is no fact, or no such merge. EditFailed: the optimisation diverged. EditlabError: the
            memory at this layer was begun with other settings.
    """
    if not facts:
        raise RequestError("wise was given no fact.", "Give at least one.")
    if config.merge not in MERGES:
        raise RequestError(f"There is no merge '{config.merge}'.", f"Use one of {', '.join(MERGES)}.")
    started = time.perf_counter()
    layer = memory_layer(lm.adapter, config.layer)
    path = lm.adapter.layers[layer].down
    before = [e.edit for e in lm.ledger.active if e.edit.routing is not None and e.edit.routing["path"] == path]
    shape = (lm.adapter.d_model, lm.adapter.d_mlp)
    shards = shards_of([e for e in before if e.routing is not None and e.routing["kind"] == "wise"], shape)
    number = max((e.routing["number"] + e.routing["count"] for e in before if e.routing), default=0)
    routing = Routing(
        path=path,
        layer=layer,
        shard_size=config.shard_size,
        merge_every=config.merge_every,
        mode=config.mode,
        merge=config.merge,
        density=config.merge_density,
        indicator=config.indicator,
        ratio=config.ratio,
        seed=config.seed,
        number=number,
        count=len(facts),
    )
    tensors: dict[str, Tensor] = {}
    records = []
    negatives = kept_inputs_of(lm, layer, pool(config.pool, seed=config.seed))
    names = subjects()
    changes = {n: shard.change.to(lm.device) for n, shard in shards.items()}
    prompts = {n: list(shard.inputs) for n, shard in shards.items()}
    written = _facts_by_shard(before)
    for i, fact in enumerate(facts):
        on_step(StepInfo("edits of the side memory", i, len(facts), "edits", fact.subject))
        shard = (number + i) // config.shard_size
        mask = mask_of(shape, config.density, config.seed, shard).to(lm.device)
        start = changes.get(shard, torch.zeros(shape, device=lm.device))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number + i)
        texts = contexts(lm, per_length=config.contexts, seed=config.seed)
        with lm.routes.off(path):
            own = [rewrite_row(lm, fact, sink=False)] + [rewrite_row(lm, fact, context=t, sink=False) for t in texts]
            again = torch.randperm(len(written.get(shard, [])), generator=generator)[: REPLAYED * config.replay]
            old = [written[shard][n] for n in again.tolist()]
            past = [rewrite_row(lm, f, sink=False) for f in old]
            rows = Rows(lm, layer, own + past)
            # Earlier edits' neighbours must stay quiet too; a few of them, others each time.
            hard = near(fact, names, config.near, seed=config.seed)
            hard += [text for f in old for text in near(f, names, min(1, config.near), seed=number + i)]
            found = train(
                start,
                mask,
                rows,
                len(own),
                negatives,
                inputs_of(lm, layer, hard) if hard else negatives.some(torch.arange(0)),
                _kept(lm, layer, prompts.get(shard, [])),
                _kept(lm, layer, [x for n in prompts if n != shard for x in prompts[n]])
                if config.mode == "retrieve"
                else None,
                config,
                generator,
                on_step,
            )
        changes[shard] = start.flatten().scatter(0, mask, found.values).view(*shape)
        prompt = rows.prompts.some(torch.tensor([0], device=lm.device)).x.cpu()
        prompts.setdefault(shard, []).append(prompt)
        written.setdefault(shard, []).append(fact)
        _add(tensors, shard, found.values.cpu() - start.flatten()[mask].cpu(), pack(mask.cpu(), start.numel()), prompt)
        records.append({"shard": shard, "steps": len(found.losses), "nll": [found.losses[0][0], found.losses[-1][0]]})
    on_step(StepInfo("edits of the side memory", len(facts), len(facts), "edits"))
    return Edit(
        method="wise",
        config=config.model_dump(mode="json") | {"layer": layer},
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas={},
        tensors=tensors,
        routing=routing.model_dump(mode="json"),
        info={
            "parameter": f"{path} (side memory)",
            "edits": records,
            "steps": [r["steps"] for r in records],
            "target_nll": [r["nll"] for r in records],
            "seconds": time.perf_counter() - started,
            "activation": getattr(lm.model.config, "hidden_act", None) or "gelu",
        },
    )


def _add(tensors: dict[str, Tensor], shard: int, values: Tensor, mask: Tensor, prompt: Tensor) -> None:
    """Put one edit's part into the tensors of its shard."""
    lengths = torch.tensor([len(prompt)])
    if f"values.{shard}" in tensors:
        values = tensors[f"values.{shard}"] + values
        prompt = torch.cat([tensors[f"inputs.{shard}"], prompt])
        lengths = torch.cat([tensors[f"lengths.{shard}"], lengths])
    tensors |= {
        f"values.{shard}": values,
        f"mask.{shard}": mask,
        f"inputs.{shard}": prompt,
        f"lengths.{shard}": lengths,
    }


def _facts_by_shard(edits: list[Edit]) -> dict[int, list[Fact]]:
    from editlab.facts import Fact

    found: dict[int, list[Fact]] = {}
    for edit in edits:
        for request, record in zip(edit.requests, edit.info["edits"], strict=True):
            found.setdefault(int(record["shard"]), []).append(Fact.model_validate(request))
    return found


def _kept(lm: LM, layer: int, inputs: list[Tensor]) -> Inputs | None:
    """Kept inputs of earlier prompts with what the matrix gives for them now."""
    if not inputs:
        return None
    x = torch.cat(inputs).to(lm.device)
    ref = lm.adapter.down(lm.model, layer)
    weight = ref.oriented(lm.model.get_parameter(ref.name).detach()).float()
    owner = torch.arange(len(inputs)).repeat_interleave(torch.tensor([len(v) for v in inputs]))
    return Inputs(x, (x @ weight.T).norm(dim=-1), owner.to(lm.device), len(inputs))
