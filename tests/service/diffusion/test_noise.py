"""Draws depend on (seed, step, row) and on nothing else."""

import torch

from booth_service.diffusion.noise import hash64, row_draws


def test_a_rows_draws_do_not_depend_on_what_was_drawn_before() -> None:
    fresh, used = torch.Generator(), torch.Generator()
    for row in range(5):
        row_draws(used, 1, 2, row, (3, 4, 4), 1000)
    first, again = row_draws(fresh, 1, 2, 3, (3, 4, 4), 1000), row_draws(used, 1, 2, 3, (3, 4, 4), 1000)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]
    assert not torch.equal(first[0], first[1])


def test_seed_step_and_row_all_matter() -> None:
    seeds = {hash64(seed, step, row) for seed in range(10) for step in range(10) for row in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)
