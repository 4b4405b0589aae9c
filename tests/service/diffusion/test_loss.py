"""Rows with weights give the paper's loss, however they are spread over ranks."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from booth_service.diffusion.loss import row_losses, row_weights, target

B = 3


@pytest.mark.parametrize("prior_loss_weight", [0.0, 0.5, 1.0])
def test_weighted_rows_are_the_papers_two_term_loss(prior_loss_weight: float) -> None:
    torch.manual_seed(0)
    model_pred, noise = torch.randn(2 * B, 5, 4, 4), torch.randn(2 * B, 5, 4, 4)
    paper = F.mse_loss(model_pred[:B], noise[:B]) + prior_loss_weight * F.mse_loss(model_pred[B:], noise[B:])
    is_class = torch.arange(2 * B) >= B
    weights = row_weights(is_class, B, prior_loss_weight)
    losses = row_losses(model_pred, noise)
    assert (losses * weights).sum().item() == pytest.approx(paper.item(), rel=1e-6)
    over_ranks = sum((losses[rank::2] * weights[rank::2]).sum() for rank in range(2))
    assert over_ranks.item() == pytest.approx(paper.item(), rel=1e-6)


def test_targets() -> None:
    latents, noise, timesteps = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), torch.tensor([3, 700])
    epsilon = DDPMScheduler(prediction_type="epsilon")
    velocity = DDPMScheduler(prediction_type="v_prediction")
    assert target(epsilon, latents, noise, timesteps) is noise
    alpha = velocity.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    expected = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(target(velocity, latents, noise, timesteps), expected)
    with pytest.raises(ValueError, match="'sample' is not supported; use epsilon or v_prediction"):
        target(DDPMScheduler(prediction_type="sample"), latents, noise, timesteps)
