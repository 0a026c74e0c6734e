"""GRACE: a codebook at one layer; an edit answers prompts that look like its own (arXiv 2211.11031).

The key is the down projection's input at the prompt's last token, the value takes the place of its output there and is
trained on the target. Which prompts a key answers is its radius (`editlab.memories.kinds.grace`). As a baseline it
shows what a memory does that recognises prompts and not meanings: edits hold, and paraphrases miss them.

The released code begins training at noise (`start: cold`) and goes on for all its steps; here a value begins at the
layer's own output and ends with `stop_nll`, unless set otherwise.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from editlab.edits.settings import EditSettings, memory_layer
from editlab.edits.values import site_of_shift
from editlab.errors import EditFailed, RequestError
from editlab.memories.kinds.grace import Routing
from editlab.progress import OnStep, StepInfo, silent
from editlab.rows import align, read_mask, rewrite_row
from editlab.state.edit import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from editlab.facts import Fact
    from editlab.lm import LM


class Config(EditSettings):
    """Settings of `grace`."""

    layer: int | None = Field(None, ge=0, description="layer of the codebook; default by model (code: 27 of 32)")
    radius: float = Field(1.0, gt=0, description="of a new key, in the units of the matrix's inputs (code: 1.0)")
    steps: int = Field(50, ge=1, le=10_000, description="steps of Adam at most (code: 50)")
    lr: float = Field(1.0, gt=0, description="Adam's learning rate (code: 1.0)")
    stop_nll: float = Field(0.02, ge=0, description="training ends below this loss")
    start: Literal["warm", "cold"] = Field(
        "warm", description="the value before training: the layer's own output, or uniform noise in [0, 1) (code: cold)"
    )
    seed: int = Field(0, ge=0, description="seed of a cold start")


def compute(lm: LM, facts: list[Fact], config: Config, on_step: OnStep = silent) -> Edit:
    """Keys and values of the facts.

    Raises:
        RequestError: there is no fact. EditFailed: the loss is not finite.
    """
    if not facts:
        raise RequestError("grace was given no fact.", "Give at least one.")
    # In the last block no later token would see the value, and a target of several tokens could not be written.
    usual = min(memory_layer(lm.adapter, None), max(0, lm.adapter.n_layers - 3))
    layer = memory_layer(lm.adapter, usual if config.layer is None else config.layer)
    path = lm.adapter.layers[layer].down
    found = []
    for i, fact in enumerate(facts):
        on_step(StepInfo("training values", i, len(facts), "edits", fact.label))
        with lm.routes.off(path):
            found.append(_train(lm, fact, layer, config))
    on_step(StepInfo("training values", len(facts), len(facts), "edits"))
    routing = Routing(path=path, layer=layer, radius=config.radius, targets=[list(target) for _, _, target, _ in found])
    return Edit(
        method="grace",
        config=config.model_dump(mode="json") | {"layer": layer},
        requests=[fact.model_dump(mode="json") for fact in facts],
        deltas={},
        tensors={"keys": torch.stack([k for k, *_ in found]), "values": torch.stack([v for _, v, *_ in found])},
        routing=routing.model_dump(mode="json"),
        info={
            "parameter": f"{path} (codebook)",
            "steps": [len(nlls) for *_, nlls in found],
            "target_nll": [[nlls[0], nlls[-1]] for *_, nlls in found],
        },
    )


def _train(lm: LM, fact: Fact, layer: int, config: Config) -> tuple[Tensor, Tensor, tuple[int, ...], list[float]]:
    """Key (d_in,), value (d_out,), the target's ids, and the losses."""
    row = rewrite_row(lm, fact, sink=False)
    row = replace(row, index=row.reads[0])  # the prompt's last token
    batch, column = align([row], lm.device)
    site, start = site_of_shift(lm, layer)
    with lm.session() as s:
        for name in ("mlp_key", "mlp_value"):
            s.capture(name, layer, at=column)
        cone = s.cone(batch, start, column)
        key, plain = (s.captured[name, layer][0].detach().float() for name in ("mlp_key", "mlp_value"))
    value = (plain.clone() if config.start == "warm" else _noise(plain, fact, config.seed)).requires_grad_()
    adam = torch.optim.Adam([value], lr=config.lr)
    wanted = torch.tensor(row.targets, device=lm.device)
    mask = read_mask(batch, [row])
    nlls: list[float] = []
    with lm.session() as s:
        s.patch(site, start, lambda part: part + (value - plain).to(part.dtype), at=torch.tensor([column]))
        for step in range(config.steps):
            logits = s.run(cone, read=mask).logits
            assert logits is not None
            nll = torch.nn.functional.cross_entropy(logits.float(), wanted)
            if not bool(torch.isfinite(nll)):
                raise EditFailed("The loss of the value is not finite.", "Try a smaller learning rate.")
            nlls.append(nll.item())
            if nlls[-1] < config.stop_nll or step == config.steps - 1:
                break
            adam.zero_grad()
            nll.backward()
            adam.step()
    return key.cpu(), value.detach().cpu(), row.targets, nlls


def _noise(like: Tensor, fact: Fact, seed: int) -> Tensor:
    """Uniform in [0, 1), the same for the same fact and seed on every device."""
    key = hashlib.sha256(f"{seed} {fact.prompt} {fact.subject} {fact.target_new}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.rand(like.shape, generator=generator).to(like.device, like.dtype)
