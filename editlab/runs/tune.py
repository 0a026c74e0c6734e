"""A small sweep of a method's settings on one model, scored as edits are: does it fire, carry over, and spare others.

The figure of merit is the harmonic mean of three shares of free answers: edits that fire, paraphrases that follow,
and neighbours answered word for word as before; of those for which the facts have prompts. `has_locality` says whether
there are neighbours to rank by; in a batch those that are edited themselves are left out. Values are kept between
points, so that settings which do not change them cost little.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import Field
from scipy.stats import hmean

from editlab import registry
from editlab.config import MethodConfig, build
from editlab.edits.presets import usual_layer, with_preset
from editlab.errors import ConfigError, EditFailed, RequestError
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    from editlab.facts import Fact
    from editlab.lm import LM

WEIGHTS = {"lambda_rel": (0.3, 1.0), "tau_rel": (3e-4, 1e-3)}  # of the covariance, by the name that a method has for it
METRICS = ("efficacy_said", "paraphrase_said", "neighbourhood_same")


class Sweep(MethodConfig):
    """What `editlab tune` is asked: the contents of its `config.yaml`."""

    method: str = "rome"
    grid: dict[str, Any] | None = Field(default=None, description="values to try, by setting; layers by default")
    file: Path | None = Field(default=None, description="facts; default capitals that the model knows")
    limit: int = Field(default=20, ge=1, description="facts at most")
    batch: bool = Field(default=False, description="all facts in one edit")
    model: str | None = None


Grid = Mapping[str, Sequence[Any]]


def default_grid(lm: LM, method: str) -> dict[str, list[Any]]:
    """Layers around the usual one, for MEMIT's family with the weight of the covariance; else learning rates.

    Raises:
        ConfigError: the method has neither.
    """
    config = registry.get(method).Config
    n, middle = lm.adapter.n_layers, usual_layer(lm.adapter)
    step, last = max(1, n // 12), max(0, n - 2)
    layers = sorted({max(0, middle - step), middle, min(last, middle + step), min(last, middle + 3 * step)})
    spread = [sorted({max(0, top - step), top}) for top in layers]
    for name, weights in WEIGHTS.items():
        if name in config.model_fields:
            return {"layers": spread, name: list(weights)}
    if "layer" in config.model_fields:
        return {"layer": list(layers)}
    if "layers" in config.model_fields:
        return {"layers": spread}
    if "lr" in config.model_fields:
        rate = build(config, with_preset(lm.adapter, method, {}), method).lr
        return {"lr": [rate / 2, rate, rate * 2]}
    raise ConfigError(f"Method '{method}' has no layers or learning rate to try by default.", "Give a grid.")


def tune(
    lm: LM,
    facts: Sequence[Fact],
    method: str,
    grid: Grid | None = None,
    on_step: OnStep = silent,
    *,
    batch: bool = False,
    on_row: Callable[[pd.DataFrame], None] = lambda rows: None,
) -> pd.DataFrame:
    """One row per combination of settings, best first; the model is left as it was.

    Args:
        grid: the values to try of each setting; default `default_grid`.
        batch: write all facts in one edit, instead of each in its own.
        on_row: is given the rows so far after each point.

    Raises:
        ConfigError: there is no fact, the model is edited, or a setting is unknown. RequestError: no fact can be edited
            as it is written, or, with `batch`, one cannot.
    """
    if not facts:
        raise ConfigError("There is no fact to tune on.", "Give a facts file.")
    if lm.ledger.active:
        raise ConfigError("Tuning starts from the unedited model.", "Undo the edits, or load the model afresh.")
    facts = list(_spared(facts)) if batch else facts
    grid = grid or default_grid(lm, method)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    rows: list[dict[str, Any]] = []
    for i, point in enumerate(points):
        on_step(StepInfo("tuning", i, len(points), "points", ", ".join(f"{k}={v}" for k, v in point.items())))
        rows.append(point | _score(lm, facts, method, point, batch))
        on_row(pd.DataFrame(rows))
    on_step(StepInfo("tuning", len(points), len(points), "points"))
    return pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)


def has_locality(facts: Sequence[Fact], *, batch: bool = False) -> bool:
    """Whether any fact has a neighbour to rank settings by; in a batch one that is not edited itself."""
    return any(fact.neighbours for fact in (_spared(facts) if batch else facts))


def _spared(facts: Sequence[Fact]) -> Iterator[Fact]:
    """Facts without the neighbours that are edited themselves when all facts are written in one edit."""
    edited = {fact.text for fact in facts}
    for fact in facts:
        yield fact.model_copy(update={"neighbours": tuple(q for q in fact.neighbours if q.prompt not in edited)})


def _score(lm: LM, facts: Sequence[Fact], method: str, point: Mapping[str, Any], batch: bool) -> dict[str, Any]:
    twin = lm.fork()
    failed, refused = 0, 0
    for chunk in [list(facts)] if batch else [[fact] for fact in facts]:
        try:
            entry = twin.edit(chunk, method, **point)
        except RequestError:  # it will be refused at every point; the others may do
            failed, refused = failed + len(chunk), refused + len(chunk)
            if refused == len(facts):
                raise
            continue
        except EditFailed:
            failed += len(chunk)
            continue
        if not batch:
            twin.undo(entry.id)
    if failed == len(facts):
        return dict.fromkeys(METRICS, 0.0) | {"score": 0.0, "n": len(facts), "failed": failed}
    found = twin.evaluate(facts, metrics=METRICS, mode="together" if batch else "single")
    shares = {line.metric: line.edited.mean * (1 - failed / len(facts)) for line in found.lines}
    score = float(hmean([max(share, 0.0) for share in shares.values()])) if shares else 0.0
    return dict.fromkeys(METRICS, float("nan")) | shares | {"score": score, "n": len(facts), "failed": failed}
