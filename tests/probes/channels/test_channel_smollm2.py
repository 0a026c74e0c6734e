"""The default model: channels that were measured on it once are there again. Bounds are wide of the measurements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from editlab import LM
from editlab.probes.channels import tasks
from editlab.probes.channels.components import writer
from editlab.probes.channels.lists import score_lists
from editlab.probes.channels.parts import Channel, Part
from editlab.probes.channels.paths import Setting
from editlab.probes.channels.scan import Config, scan
from editlab.probes.channels.weights import check

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.from_pretrained()


def test_t24_known_channels_rank_first_in_the_weights(lm: LM) -> None:
    assert check(lm) < 1e-5
    found = scan(lm, Config(modes=("q", "k")))
    score, rank, p = found.look_up(Channel(Part(16, 0), Part(17, 3), "k"))
    assert rank == 1 and score == pytest.approx(0.168, abs=0.005) and p < 1e-3
    score, rank, p = found.look_up(Channel(Part(20, 0, 0), Part(23, 7), "q"))
    assert rank <= 3 and score == pytest.approx(0.210, abs=0.005) and p < 1e-4
    score, rank, _ = found.look_up(Channel(Part(20, 0), Part(23, 7), "q"))
    assert rank > 3  # the same channel is not seen between whole heads
    forward = found.forward
    for mode, median, largest in (("q", 0.0441, 0.133), ("k", 0.0439, 0.180)):
        scores = found.compositions[mode].head
        assert np.median(scores[forward]) == pytest.approx(median, abs=5e-4)
        assert scores[forward].max() == pytest.approx(largest, abs=5e-3)


def test_t24_removing_the_inhibition_component_takes_a_movers_margin(lm: LM) -> None:
    setting = Setting(lm, tasks.ioi(lm, 20))
    w = writer(lm, Part(20, 0, 0))
    z = setting.read([("z", 20)], at_end=True)["z", 20][:, 0]
    change = -w.coordinates(z) @ w.directions.to(z)
    edges = setting.edges(Part(23, 0), "q", [change])
    assert edges.margin[0].mean() - edges.margin[1].mean() > 0.1  # 0.40 to 0.04 on 48 prompts of 10 templates
    nodes = setting.nodes([Part(23, 0)], [(20, 0, w.scaled(0.0))])
    assert nodes.margin[0].mean() - nodes.margin[1].mean() > 0.1  # 0.40 to 0.21
    assert nodes.difference[0].mean() > 2


def test_t24_lists_are_recalled_while_they_are_short(lm: LM) -> None:
    short = score_lists(lm, tasks.laundry(lm, 2, 8))
    long = score_lists(lm, tasks.laundry(lm, 8, 3))
    assert short.right.mean() > 0.9 and long.right.mean() < 0.45
    assert torch.tensor(long.right).sum() > 0
