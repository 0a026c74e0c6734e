"""The preservation metric of a layer: its key covariance, collected at first use and factorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editlab.data.corpus import load_corpus
from editlab.edits.covariance import StatsSettings, collect
from editlab.edits.settings import LocateEditSettings
from editlab.edits.solver import Metric
from editlab.progress import OnStep, silent

if TYPE_CHECKING:
    from editlab.lm import LM


def preserving(lm: LM, layer: int, settings: LocateEditSettings, on_step: OnStep = silent) -> Metric:
    """M = C of `layer`."""
    corpus = load_corpus(settings.stats_text)
    moments = collect(lm, [layer], corpus, StatsSettings(tokens=settings.stats_tokens), on_step=on_step)
    return Metric.of(moments[layer].covariance)
