"""Channels on a pretended device, from weights to verdicts and steering: no operation mixes two."""

from __future__ import annotations

from collections.abc import Callable

from word_lm import word_lm

from editlab import LM
from editlab.probes.channels import causal, find, harm, readout, roles, scan, steering
from editlab.probes.channels.components import component_edit
from editlab.probes.channels.factors import factorise
from editlab.probes.channels.parts import Part
from editlab.probes.channels.weights import check


def test_scores_verdicts_and_steering(there: Callable[[LM], LM]) -> None:
    lm, parts = there(word_lm()), [Part(0, 1, 0), Part(0, 2, 0)]
    check(lm)
    factorise(lm, 1)
    factors, scanned = factorise(lm), scan.scan(lm)
    heads = roles.head_roles(lm, roles.Config(sequences=2, period=5, prompts=4, threshold=0.001))
    settings = find.Config(readers=1, candidates=2, keep=1, screening=8, prompts=8)
    assert find.find(lm, "inhibition", scanned, heads, settings, causal.Config(controls=20, passages=1)).headline
    few = steering.Config(length=2, dev=1, test=2, samples=2, controls=1, spaces=1)
    assert steering.steering(lm, parts, few).headline
    readout.read_out(lm, factors, parts[0])
    readout.copying(lm, factors, parts[0], ("the", "and"))
    harm.perplexity_with(lm, Part(1, 1), 2)
    lm.ledger.apply(component_edit(lm, parts[:1], 0.5, side="ov"))
