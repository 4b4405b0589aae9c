"""DreamBooth's loss (Ruiz et al. 2023, eq. 2): reconstruction plus weighted prior preservation, row by row."""

# R = rows of a micro-batch;  C, h, w = latent channels and cells

from typing import Any

import torch
from torch import Tensor


def target(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the model should predict, all (R, C, h, w): the noise, or the velocity (Salimans & Ho 2022)."""
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        velocity: Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    raise ValueError(f"prediction_type {prediction_type!r} is not supported; use epsilon or v_prediction")


def row_losses(model_pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each row, (R,) in fp32.

    With `mask` (R, 1, h, w) in [0, 1] it is the mean over the mask, so that a small subject counts as much as a large
    one; a row that is all ones has the plain mean.
    """
    errors = (model_pred.float() - target.float()).square()
    if mask is None:
        return errors.flatten(1).mean(1)
    weights = mask.float().expand_as(errors)
    return (errors * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def row_weights(is_class: Tensor, train_batch_size: int, prior_loss_weight: float) -> Tensor:
    """1/B for instance rows and prior_loss_weight/B for class rows, (R,) fp32.

    With B instance and B class rows in a step, the weighted sum over all rows of all ranks is the paper's loss:
    mean instance error plus prior_loss_weight times mean class error.
    """
    weights = torch.ones(is_class.shape, dtype=torch.float32, device=is_class.device)
    return torch.where(is_class, prior_loss_weight, weights) / train_batch_size


def min_snr_weights(noise_scheduler: Any, timesteps: Tensor, snr_gamma: float) -> Tensor:
    """Min-SNR-gamma of each row, (R,) fp32 (Hang et al. 2023, section 3.4): min(SNR, gamma)/SNR for noise prediction,
    min(SNR, gamma)/(SNR + 1) for velocity. It multiplies both loss terms, instance and prior."""
    alphas_cumprod = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights: Tensor = (snr_gamma / snr).clamp(max=1)
    if noise_scheduler.config.prediction_type == "v_prediction":
        weights = snr.clamp(max=snr_gamma) / (snr + 1)
    return weights
