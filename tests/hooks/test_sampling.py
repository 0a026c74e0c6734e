"""Sampling from a generator of one's own leaves the process's random numbers as they were."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import make_lm

from editlab.hooks.sampling import drawing_from


def test_draws_are_those_of_the_generator_which_goes_on_where_it_stood() -> None:
    generator, same = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    shared = torch.get_rng_state()
    for _ in range(2):
        with drawing_from(generator):
            drawn = torch.rand(3)
        assert torch.equal(drawn, torch.rand(3, generator=same))
        assert torch.equal(torch.get_rng_state(), shared)


def test_an_error_puts_the_shared_state_back_too() -> None:
    shared = torch.get_rng_state()
    with pytest.raises(ValueError), drawing_from(torch.Generator().manual_seed(5)):
        torch.rand(3)
        raise ValueError
    assert torch.equal(torch.get_rng_state(), shared)


def test_without_a_generator_torch_s_own_is_drawn_on() -> None:
    torch.manual_seed(3)
    with drawing_from(None):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_sampled_continuations_are_told_apart_by_the_seed_alone() -> None:
    lm = make_lm("llama")

    def sampled(seed: int) -> list[str]:
        return lm.generate(["The sea", "An inn"], 8, do_sample=True, generator=torch.Generator().manual_seed(seed))

    first = sampled(1)
    torch.rand(7)
    assert sampled(1) == first != sampled(2)
