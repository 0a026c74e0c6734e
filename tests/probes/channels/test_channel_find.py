"""The whole way from weights and roles to verdicts, on a model where nothing is to be found."""

from __future__ import annotations

import pytest
from word_lm import word_lm

from editlab.errors import RequestError
from editlab.probes.channels import causal, find, roles, scan, tasks


@pytest.mark.parametrize(("kind", "mode", "dots"), [("inhibition", "q", 2), ("induction", "k", 1)])
def test_readers_by_role_and_writers_by_weights_are_screened_and_tested_on_other_prompts(
    kind: find.Kind, mode: str, dots: int
) -> None:
    lm = word_lm()
    found_scan = scan.scan(lm)
    config = roles.Config(sequences=4, period=6, prompts=20, threshold=0.001)
    heads = roles.head_roles(lm, config)
    settings = find.Config(readers=2, candidates=3, keep=2, screening=10, prompts=20)
    found = find.find(lm, kind, found_scan, heads, settings, causal.Config(controls=20, passages=0))
    effects = [abs(effect) for _, effect in found.screened]
    assert effects == sorted(effects, reverse=True)
    tested = [t.channel for t in found.tests.tested]
    assert tested == [c for c, _ in found.screened[:2]] and {c.mode for c in tested} == {mode}
    able = heads.heads(find.READERS[kind], 0.0005 if kind == "inhibition" else None)
    allowed = [name for name in able if not name.startswith("0.")][:2]
    assert {str(c.target) for c, _ in found.screened} <= set(allowed)
    assert all(str(c.source).count(".") == dots for c in tested)
    # A random model has no such channel that does anything consistent.
    assert "verified" not in set(found.tests.to_pandas()["status"]) and kind in found.headline
    make = tasks.ioi if kind == "inhibition" else tasks.repeats
    assert not {p.text for p in make(lm, 10, seed=1)} & {p.text for p in make(lm, 20, seed=0)}
    strict = roles.HeadRoles(heads.scores, heads.groups, roles.Config(threshold=0.99), lm.name)
    with pytest.raises(RequestError, match=r"No head .* has the role"):
        find.find(lm, kind, found_scan, strict, settings)
