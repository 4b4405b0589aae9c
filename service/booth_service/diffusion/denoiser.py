"""The one trained module: UNet and text encoder in a single forward, so that ZeRO has one engine."""

# R = rows of a micro-batch;  C, h, w = latent channels and cells;  L = prompt tokens;  D = text-embedding width

import torch
from torch import Tensor, nn


class TextConditionedDenoiser(nn.Module):
    """Predicts noise (or velocity) from noisy latents, timesteps and prompt tokens."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, train_text_encoder: bool) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.train_text_encoder = train_text_encoder
        self.unet.requires_grad_(True)
        self.text_encoder.requires_grad_(train_text_encoder)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """noisy_latents (R, C, h, w), timesteps (R,), input_ids (R, L) -> model_pred (R, C, h, w)."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            encoder_hidden_states = self.text_encoder(input_ids)[0]  # (R, L, D)
        model_pred: Tensor = self.unet(noisy_latents, timesteps, encoder_hidden_states).sample
        return model_pred

    def parameter_groups(self, learning_rate: float, text_encoder_learning_rate: float) -> list[dict[str, object]]:
        """Optimizer groups: the UNet's parameters, then the text encoder's where it is trained."""
        groups: list[dict[str, object]] = [{"params": list(self.unet.parameters()), "lr": learning_rate}]
        if self.train_text_encoder:
            parameters = list(self.text_encoder.parameters())
            groups.append({"params": parameters, "lr": text_encoder_learning_rate})
        return groups
