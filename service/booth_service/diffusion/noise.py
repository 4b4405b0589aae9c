"""Random draws that depend on (seed, step, row) alone, so that a run does not depend on the number of ranks."""

import hashlib

import torch
from torch import Tensor


def hash64(*parts: int) -> int:
    """A 64-bit seed from whole numbers, well mixed."""
    digest = hashlib.blake2b(b"".join(part.to_bytes(16, "little", signed=True) for part in parts), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def row_draws(
    generator: torch.Generator, seed: int, step: int, row: int, shape: tuple[int, ...], num_train_timesteps: int
) -> tuple[Tensor, Tensor, int]:
    """Posterior noise and diffusion noise (both `shape`, standard normal, on the CPU) and a timestep for one row.

    `generator` is a CPU generator that is only reused to save allocations; its state does not matter.
    """
    generator.manual_seed(hash64(seed, step, row))
    posterior_noise = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    timestep = int(torch.randint(0, num_train_timesteps, (1,), generator=generator))
    return posterior_noise, noise, timestep
