"""WISE: edits in a side memory that answers only the prompts it is for (arXiv 2405.14768).

One value matrix W gets a side copy, kept as its difference D = W' - W. Edits train D, on a random share of its entries
that is drawn anew for every shard of edits; shards are merged. A router decides for each prompt whether the side memory
or the model as it is answers (`editlab.memories.kinds.wise`). No weight changes: what is not routed is the model's own
answer, bit for bit.

Departures from the released code, each for a reason: no weight decay (it escaped the mask), masks with an exact count,
the threshold computed afresh after every edit, irrelevant texts drawn from a pool instead of one an edit, the
indicator on the prompt alone, banks compared in units of their own thresholds, and Adam, because plain steps that are
small enough to be stable do not move a small model.

What the paper does at a late layer, by the mean over tokens, fails on a small model: what tells subjects apart
is gone there, a paraphrase is not helped, and edits that share entries overwrite each other. Three settings, off by
default, mend it: an early layer, where a subject's last token is its own; `pooling` "max", which routes by that token;
and `whiten`, steps in a metric in which ordinary text, near neighbours and earlier edits are not written on
(`side_metric`; it needs masks of whole rows). Tokens before the subject are then trained as the model leaves them.
`prose`, `left_out` and `openings` say in what other words the target is trained (`rewordings`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from editlab.edits.irrelevant import near, pool, subjects
from editlab.edits.keys import contexts
from editlab.edits.preserve import covariances
from editlab.edits.rewordings import behind_prose, with_other_openings, with_words_left_out
from editlab.edits.settings import EditSettings, memory_layer
from editlab.edits.side_metric import factor_of
from editlab.edits.side_training import Inputs, Quiet, Rows, Trained, Unknown, inputs_of, kept_inputs_of, train
from editlab.errors import PackError, RequestError
from editlab.memories.kinds.wise import Routing, Shard, mask_of, pack, shards_of
from editlab.memories.merges import MERGES
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import Row, rewrite_row, rewrite_rows
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM


REPLAYED = 4  # earlier edits that the steps of one edit draw from, per edit that a step replays


class Config(EditSettings):
    """Settings of `wise`."""

    layer: int | None = Field(None, ge=0, description="layer whose value matrix gets a side memory; default by model")
    steps: int = Field(50, ge=1, le=1000, description="steps an edit at most (released code: 30 to 70)")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate")
    density: float = Field(0.2, gt=0, le=1, description="share of the matrix that a shard may change (paper: 0.2)")
    shard_size: int = Field(50, ge=1, description="edits of a shard (paper: 500)")
    merge_every: int = Field(2, ge=1, description="shards that are merged (paper: 2)")
    mode: Literal["merge", "retrieve"] = Field("merge", description="one merged bank for all, or a bank per merge")
    merge: str = Field("ties", description=f"how shards are merged: {', '.join(MERGES)}")
    mask: Literal["entries", "rows"] = Field("entries", description="draw single entries (paper) or whole rows")
    merge_density: float = Field(0.53, gt=0, le=1, description="of ties, magnitude and dare (released code: 0.53)")
    indicator: Literal["absolute", "relative", "reference"] = Field(
        "relative", description="what routes: the paper's, that over the plain output's, or the released code's"
    )
    pooling: Literal["mean", "max"] = Field("mean", description="over the prompt's tokens")
    ratio: float = Field(0.8, gt=0, le=1, description="threshold, in units of the lowest indicator of the edits")
    alpha: float = Field(0.15, description="irrelevant texts stay below (paper, absolute: 5)")
    beta: float = Field(1.0, description="edits stay above (paper, absolute: 20)")
    gamma: float = Field(0.6, description="distance between the two (paper, absolute: 10)")
    margin_weight: float = Field(50.0, ge=0, description="of the margin loss (paper, absolute: 1)")
    negatives: int = Field(16, ge=0, description="irrelevant texts a step")
    pool: int = Field(128, ge=1, description="irrelevant texts to draw from")
    near: int = Field(8, ge=0, description="the edit's prompt about so many other subjects, in every step")
    whiten: bool = Field(
        False, description="steps in the metric of ordinary text, near neighbours and earlier edits; rows only"
    )
    replay: int = Field(2, ge=0, description="earlier edits of the shard that a step trains again")
    replay_weight: float = Field(1.0, ge=0, description="of their loss")
    stop_nll: float = Field(0.02, ge=0, description="training ends below this loss, if the margins hold")
    stop_margin: float = Field(0.01, ge=0, description="margin loss at which they do")
    contexts: dict[PositiveInt, PositiveInt] = Field(
        default={5: 5, 10: 5}, description="random texts put in front of the prompt: {length in tokens: how many}"
    )
    prose: int = Field(0, ge=0, description="sentences of ordinary prose put in front of the prompt")
    left_out: int = Field(0, ge=0, le=1000, description="copies of the prompt with words left out")
    openings: int = Field(0, ge=0, le=1000, description="other openings that name the subject")
    rows: int = Field(1000, ge=0, description="of these texts a step trains on, beside the prompt")
    seed: int = Field(0, ge=0, description="of masks, contexts and draws")
    stats_text: str = Field("factbook", description="ordinary text: 'factbook' or a file")
    stats_tokens: int | None = Field(None, ge=1, description="tokens of it; default twenty per key dimension")

    @model_validator(mode="after")
    def _whole_rows(self) -> Config:
        if self.whiten and self.mask != "rows":
            raise ValueError("'whiten' needs 'mask' to be 'rows'")
        return self


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
    memory = _Memory.begun(lm, path)
    first = memory.number
    negatives = kept_inputs_of(lm, layer, pool(config.pool, seed=config.seed))
    covariance = covariances(lm, [layer], config, on_step)[layer] if config.whiten else None
    tensors: dict[str, Tensor] = {}
    records = []
    for i, fact in enumerate(facts):
        on_step(StepInfo("edits of the side memory", i, len(facts), "edits", fact.label))
        shard = memory.number // config.shard_size
        with lm.routes.off(path):
            found, prompt = _one(lm, layer, fact, memory, shard, negatives, covariance, config, on_step)
        mask = pack(memory.mask(shard, config).cpu(), memory.change(shard).numel())
        _add(tensors, shard, memory.take(shard, fact, found.values, prompt, config), mask, prompt)
        nll = [found.losses[0][0], found.losses[-1][0]]
        records.append({"shard": shard, "steps": len(found.losses), "nll": nll})
    on_step(StepInfo("edits of the side memory", len(facts), len(facts), "edits"))
    routing = Routing(
        path=path,
        layer=layer,
        shard_size=config.shard_size,
        merge_every=config.merge_every,
        mode=config.mode,
        merge=config.merge,
        density=config.merge_density,
        indicator=config.indicator,
        pooling=config.pooling,
        ratio=config.ratio,
        seed=config.seed,
        number=first,
        count=len(facts),
        activation=_activation(lm) if config.indicator == "reference" else None,
    )
    return Edit(
        method="wise",
        config=config.model_dump(mode="json") | {"layer": layer},
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas={},
        tensors=tensors,
        routing=routing.model_dump(mode="json", exclude_none=True),
        info={
            "parameter": f"{path} (side memory)",
            "edits": records,
            "steps": [r["steps"] for r in records],
            "target_nll": [r["nll"] for r in records],
            "seconds": time.perf_counter() - started,
        },
    )


@dataclass
class _Memory:
    """The shards as they stand while edits are made.

    Attributes:
        number: edits so far. written: shards as they were at the beginning. changes: of those that were asked for.
        prompts, facts: by shard, the edits' prompts' inputs, and they themselves.
    """

    shape: tuple[int, int]
    device: torch.device
    number: int = 0
    written: dict[int, Shard] = field(default_factory=dict)
    changes: dict[int, Tensor] = field(default_factory=dict)
    prompts: dict[int, list[Tensor]] = field(default_factory=dict)
    facts: dict[int, list[Fact]] = field(default_factory=dict)

    @classmethod
    def begun(cls, lm: LM, path: str) -> _Memory:
        """With what the active edits at `path` wrote."""
        memory = cls((lm.adapter.d_model, lm.adapter.d_mlp), lm.device)
        routed = [e.edit for e in lm.ledger.active if e.edit.routing is not None and e.edit.routing["path"] == path]
        before = [(e, e.routing) for e in routed if e.routing is not None and e.routing["kind"] == "wise"]
        memory.number = max((routing["number"] + routing["count"] for _, routing in before), default=0)
        memory.written = shards_of([edit for edit, _ in before], memory.shape)
        memory.prompts = {n: list(shard.inputs) for n, shard in memory.written.items()}
        for edit, routing in before:
            for i, fact in enumerate(_facts_of(edit)):
                shard = (routing["number"] + i) // routing["shard_size"]
                memory.facts.setdefault(shard, []).append(fact)
        return memory

    def change(self, shard: int) -> Tensor:
        """(d_out, d_in) of a shard so far."""
        if shard not in self.changes:
            known = self.written.get(shard)
            self.changes[shard] = torch.zeros(self.shape) if known is None else known.change
        return self.changes[shard].to(self.device)

    def mask(self, shard: int, config: Config) -> Tensor:
        """What the shard may change."""
        rows = config.mask == "rows"
        return mask_of(self.shape, config.density, config.seed, shard, rows=rows).to(self.device)

    def take(self, shard: int, fact: Fact, values: Tensor, prompt: Tensor, config: Config) -> Tensor:
        """Take an edit in; what it added to the shard's values, on the CPU."""
        before, mask = self.change(shard).flatten(), self.mask(shard, config)
        self.changes[shard] = before.scatter(0, mask, values).view(self.shape)
        self.prompts.setdefault(shard, []).append(prompt)
        self.facts.setdefault(shard, []).append(fact)
        self.number += 1
        return values.cpu() - before[mask].cpu()


def _facts_of(edit: Edit) -> list[Fact]:
    """The facts that an edit wrote, one for each of its numbers; a pack may say anything there.

    Raises:
        PackError: it names other than these.
    """
    from editlab.facts import Fact

    try:
        facts = [Fact.model_validate(request) for request in edit.requests]
    except ValidationError:
        facts = []
    assert edit.routing is not None
    if len(facts) != edit.routing["count"]:
        raise PackError(
            "An earlier edit of this side memory does not name the facts that it wrote, so they cannot be rehearsed.",
            "Load its pack as it was saved, or undo it.",
        )
    return facts


def _one(
    lm: LM,
    layer: int,
    fact: Fact,
    memory: _Memory,
    shard: int,
    negatives: Inputs,
    covariance: Tensor | None,
    config: Config,
    on_step: OnStep,
) -> tuple[Trained, Tensor]:
    """Train one edit; also the inputs of its bare prompt, (n, d_in) on the CPU."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + memory.number)
    own = _own_rows(lm, fact, config)
    written = memory.facts.get(shard, [])
    again = [written[n] for n in torch.randperm(len(written), generator=generator)[: REPLAYED * config.replay].tolist()]
    rows = Rows(lm, layer, own + [rewrite_row(lm, f, sink=False) for f in again], from_subject=config.whiten)
    # Earlier edits' neighbours must stay quiet too; a few of them, others each time.
    hard = near(fact, subjects(), config.near, seed=config.seed)
    hard += [text for f in again for text in near(f, subjects(), min(1, config.near), seed=memory.number)]
    neighbours = inputs_of(lm, layer, hard) if hard else negatives.some(torch.arange(0, device=lm.device))
    here = memory.prompts.get(shard, [])
    others = [x for n, inputs in memory.prompts.items() if n != shard for x in inputs]
    others = others if config.mode == "retrieve" else []
    factor = None if covariance is None else factor_of(covariance, neighbours.x, [*here, *others])
    unknown = Unknown(memory.change(shard), memory.mask(shard, config), factor)
    quiet = Quiet(negatives, neighbours, _kept(lm, layer, here), _kept(lm, layer, others))
    found = train(unknown, rows, len(own), quiet, config, generator, on_step)
    return found, rows.prompts.some(torch.tensor([0], device=lm.device)).x.cpu()


def _activation(lm: LM) -> str:
    return getattr(lm.model.config, "hidden_act", None) or "gelu"


def _own_rows(lm: LM, fact: Fact, config: Config) -> list[Row]:
    """The prompt, then the texts that train it in other surroundings and other words."""
    texts = [*contexts(lm, per_length=config.contexts, seed=config.seed)]
    texts += behind_prose(fact, config.prose, seed=config.seed)
    reworded = with_words_left_out(fact, config.left_out, seed=config.seed)
    reworded += with_other_openings(fact, config.openings, seed=config.seed)
    rows = rewrite_rows(lm, fact, ("", *texts), sink=False)
    # Every other rewording stands behind one of the texts.
    places = [texts[i // 2 % len(texts)] if i % 2 and texts else "" for i in range(len(reworded))]
    behind = (rewrite_rows(lm, f, [text], sink=False) for f, text in zip(reworded, places, strict=True))
    return rows + [row for found in behind for row in found]


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


def _kept(lm: LM, layer: int, inputs: list[Tensor]) -> Inputs:
    """Kept inputs of earlier prompts with what the matrix gives for them now."""
    ref = lm.adapter.down(lm.model, layer)
    weight = ref.oriented(lm.model.get_parameter(ref.name).detach()).float()
    x = torch.cat([weight.new_zeros(0, weight.shape[1]), *(part.to(weight) for part in inputs)])
    sizes = torch.tensor([len(part) for part in inputs], dtype=torch.long)
    owner = torch.arange(len(inputs)).repeat_interleave(sizes)
    return Inputs(x, (x @ weight.T).norm(dim=-1), owner.to(x.device), len(inputs))
