"""The preservation metric of a layer: its key covariance, collected at first use and factorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from editlab.data.corpus import load_corpus
from editlab.edits.covariance import StatsSettings, collect
from editlab.edits.settings import LocateEditSettings
from editlab.edits.solver import Metric
from editlab.progress import OnStep, silent

if TYPE_CHECKING:
    from editlab.lm import LM


def preserving(lm: LM, layer: int, settings: LocateEditSettings, on_step: OnStep = silent) -> Metric:
    """M = C of `layer`."""
    return Metric.of(covariances(lm, [layer], settings, on_step)[layer])


class TextSettings(Protocol):
    """The fields of a method's config that say what ordinary text is."""

    @property
    def stats_text(self) -> str: ...
    @property
    def stats_tokens(self) -> int | None: ...


def covariances(lm: LM, layers: Sequence[int], settings: TextSettings, on_step: OnStep = silent) -> dict[int, Tensor]:
    """C of each layer, (d_mlp, d_mlp) float64, all from one pass over the text."""
    corpus = load_corpus(settings.stats_text)
    moments = collect(lm, list(layers), corpus, StatsSettings(tokens=settings.stats_tokens), on_step=on_step)
    return {layer: moments[layer].covariance for layer in layers}
