"""The whole way from weights and roles to verdicts, on a model where nothing is to be found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from word_lm import word_lm

from editlab.errors import RequestError
from editlab.probes.channels import causal, find, roles, scan, tasks


@pytest.mark.parametrize(("kind", "mode", "dots"), [("inhibition", "q", 2), ("induction", "k", 1)])
def test_readers_by_role_and_writers_by_weights_are_screened_and_tested_on_other_prompts(
    kind: find.Kind, mode: str, dots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = word_lm()
    found_scan = scan.scan(lm)
    config = roles.Config(sequences=4, period=6, prompts=20, threshold=0.001)
    heads = roles.head_roles(lm, config)
    drawn = _watched(monkeypatch)
    settings = find.Config(readers=2, candidates=3, keep=2, screening=10, prompts=20)
    found = find.find(lm, kind, found_scan, heads, settings, causal.Config(controls=20, passages=0))
    looked_at = {p.text for p in tasks.ioi(lm, config.prompts, seed=config.seed)}  # what chose the readers
    screening, testing = ({p.text for p in prompts} for prompts in drawn)
    assert not testing & (looked_at | screening) and not screening & looked_at and len(testing) > 15
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
    strict = roles.HeadRoles(heads.scores, heads.groups, roles.Config(threshold=0.99), lm.name)
    with pytest.raises(RequestError, match=r"No head .* has the role"):
        find.find(lm, kind, found_scan, strict, settings)


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[tasks.Prompt]]:
    """The prompts that are screened on, and those that are tested on."""
    drawn: list[Sequence[tasks.Prompt]] = []
    screen, verify = causal.screen, causal.verify
    monkeypatch.setattr(causal, "screen", lambda lm, c, p, *rest: drawn.append(p) or screen(lm, c, p, *rest))
    monkeypatch.setattr(causal, "verify", lambda lm, c, p, *rest, **k: drawn.append(p) or verify(lm, c, p, *rest, **k))
    return drawn


def test_prompts_that_were_looked_at_are_drawn_again() -> None:
    lm = word_lm()
    for make in (tasks.ioi, tasks.repeats):
        first = make(lm, 24)
        other = make(lm, 24, without={p.text for p in first})  # of the same seed
        assert not {p.text for p in first} & {p.text for p in other}
        assert [p.template for p in other] == [p.template for p in first]
    with pytest.raises(RequestError, match="Hardly any prompt is left"):
        tasks.ioi(lm, 1, without=_Everything())


class _Everything(frozenset[str]):
    def __contains__(self, text: object) -> bool:
        return True
