"""The noise schedule that original Stable Diffusion 1.x and 2.x checkpoints carry beside their weights."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from itertools import accumulate
from math import log, sqrt
from operator import mul
from typing import Any

_LEAST_VARIANCE = 1e-20  # the first one is zero; its logarithm is taken of this (ldm: ddpm.py, register_schedule)


def betas(config: Mapping[str, Any]) -> list[float] | None:
    """The betas of a diffusers scheduler's config, or None for a schedule that the original programs do not know.

    They know one: evenly spaced in the square root ("scaled_linear"), not rescaled to zero terminal SNR.
    """
    is_known = config.get("beta_schedule") == "scaled_linear"
    if not is_known or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        return None
    steps = int(config.get("num_train_timesteps", 1000))  # diffusers' default
    first, last = sqrt(config["beta_start"]), sqrt(config["beta_end"])
    return [(first + (last - first) * step / (steps - 1)) ** 2 for step in range(steps)]


def buffers(betas: list[float]) -> dict[str, bytes]:
    """The buffers of ldm's DDPM by name, each len(betas) little-endian fp32 numbers (Ho et al. 2020, eq. 4 and 7)."""
    alphas_cumprod = list(accumulate((1 - beta for beta in betas), mul))
    alphas_cumprod_prev = [1.0, *alphas_cumprod[:-1]]
    steps = list(zip(betas, alphas_cumprod, alphas_cumprod_prev, strict=True))

    def of(term: Callable[[float, float, float], float]) -> bytes:
        return struct.pack(f"<{len(steps)}f", *(term(*step) for step in steps))

    def variance(beta: float, now: float, before: float) -> float:
        return beta * (1 - before) / (1 - now)

    return {
        "betas": of(lambda beta, now, before: beta),
        "alphas_cumprod": of(lambda beta, now, before: now),
        "alphas_cumprod_prev": of(lambda beta, now, before: before),
        "sqrt_alphas_cumprod": of(lambda beta, now, before: sqrt(now)),
        "sqrt_one_minus_alphas_cumprod": of(lambda beta, now, before: sqrt(1 - now)),
        "log_one_minus_alphas_cumprod": of(lambda beta, now, before: log(1 - now)),
        "sqrt_recip_alphas_cumprod": of(lambda beta, now, before: sqrt(1 / now)),
        "sqrt_recipm1_alphas_cumprod": of(lambda beta, now, before: sqrt(1 / now - 1)),
        "posterior_variance": of(variance),
        "posterior_log_variance_clipped": of(lambda *step: log(max(variance(*step), _LEAST_VARIANCE))),
        "posterior_mean_coef1": of(lambda beta, now, before: beta * sqrt(before) / (1 - now)),
        "posterior_mean_coef2": of(lambda beta, now, before: (1 - before) * sqrt(1 - beta) / (1 - now)),
    }
