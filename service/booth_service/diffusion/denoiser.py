"""The one trained module: UNet and text encoders in a single forward, so that ZeRO has one engine."""

# R = rows of a micro-batch;  C, h, w = latent channels and cells;  L = prompt tokens;  D = width of all text embeddings
# P = width of the pooled text embedding (SDXL)

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from booth_service.diffusion.components import Components

TextEmbeds = tuple[Tensor, Tensor | None]  # encoder_hidden_states (R, L, D); pooled (R, P), or None


class TextConditionedDenoiser(nn.Module):
    """Predicts noise (or velocity) from noisy latents, timesteps and prompts: Stable Diffusion 1.x and 2.x.

    Submodules are named as the base model's folders are ("unet", "text_encoder"), and so are their parameters.
    """

    def __init__(self, unet: nn.Module, text_encoders: Mapping[str, nn.Module], train_text_encoder: bool) -> None:
        super().__init__()
        self.train_text_encoder = train_text_encoder
        self.text_encoder_names = tuple(text_encoders)
        self.unet: Any = unet.requires_grad_(True)
        for name, text_encoder in text_encoders.items():
            self.add_module(name, text_encoder.requires_grad_(train_text_encoder))

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Folder name -> text encoder, trained or not, in the order of the tokenizers."""
        return {name: self.get_submodule(name) for name in self.text_encoder_names}

    def trained(self) -> dict[str, nn.Module]:
        """Folder name -> module, for what is trained, the UNet first.

        Parameters without requires_grad in there take no part in what the model predicts and keep their values.
        """
        return {"unet": self.unet, **(self.text_encoders if self.train_text_encoder else {})}

    def encode(self, input_ids: tuple[Tensor, ...]) -> TextEmbeds:
        """Token ids, one (R, L) for each text encoder -> embeddings; gradients flow where the encoders are trained."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            return self._encode(input_ids)

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        input_ids: tuple[Tensor, ...] | None = None,
        embeds: TextEmbeds | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """noisy_latents (R, C, h, w), timesteps (R,) and prompts -> model_pred (R, C, h, w) in the UNet's dtype.

        Latents and embeddings may have any float dtype. Prompts are token ids, or embeddings of `encode` where the
        encoders are frozen. time_ids (R, 6) are SDXL's micro-conditions (`data.framing.Frame.time_ids`), not in bf16,
        which cannot hold every size above 256; families without them ignore them. Raises ValueError unless exactly
        one of input_ids and embeds is given.
        """
        if (input_ids is None) == (embeds is None):
            raise ValueError("give exactly one of input_ids and embeds")
        hidden, pooled = embeds if input_ids is None else self.encode(input_ids)  # type: ignore[misc]
        dtype = next(self.unet.parameters()).dtype  # bf16 under ZeRO, fp32 on one rank
        pooled = None if pooled is None else pooled.to(dtype)
        return self._predict(noisy_latents.to(dtype), timesteps, hidden.to(dtype), pooled, time_ids)

    def parameter_groups(self, learning_rate: float, text_encoder_learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups: the UNet's parameters, then all text encoders'; neither where none of them is trained."""
        unet, *text_encoders = self.trained().values()
        of_text = [parameter for module in text_encoders for parameter in _with_gradient(module)]
        groups = [
            {"params": _with_gradient(unet), "lr": learning_rate},
            {"params": of_text, "lr": text_encoder_learning_rate},
        ]
        return [group for group in groups if group["params"]]

    def enable_activation_checkpointing(self) -> None:
        """Activations inside blocks are computed again in the backward pass: less memory, about a third more time."""
        self.unet.enable_gradient_checkpointing()
        for text_encoder in self.text_encoders.values() if self.train_text_encoder else ():
            text_encoder.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            text_encoder.train()  # transformers checkpoints in training mode only

    def _encode(self, input_ids: tuple[Tensor, ...]) -> TextEmbeds:
        (text_encoder,), (ids,) = self.text_encoders.values(), input_ids
        return text_encoder(ids)[0], None

    def _predict(
        self, noisy_latents: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor | None, time_ids: Tensor | None
    ) -> Tensor:
        model_pred: Tensor = self.unet(noisy_latents, timesteps, hidden).sample
        return model_pred


class SDXLDenoiser(TextConditionedDenoiser):
    """Stable Diffusion XL (Podell et al. 2023): two text encoders, a pooled text embedding, sizes as conditions."""

    def __init__(self, unet: nn.Module, text_encoders: Mapping[str, nn.Module], train_text_encoder: bool) -> None:
        super().__init__(unet, text_encoders, train_text_encoder)
        # What comes after the penultimate layer of the first encoder is never read (the second one's gives `pooled`).
        first: Any = next(iter(text_encoders.values()))
        first.encoder.layers[-1].requires_grad_(False)
        first.final_layer_norm.requires_grad_(False)

    def _encode(self, input_ids: tuple[Tensor, ...]) -> TextEmbeds:
        encoders = self.text_encoders.values()
        outputs = [encoder(ids, output_hidden_states=True) for encoder, ids in zip(encoders, input_ids, strict=True)]
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds

    def _predict(
        self, noisy_latents: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor | None, time_ids: Tensor | None
    ) -> Tensor:
        if pooled is None or time_ids is None:
            raise ValueError("Stable Diffusion XL needs the pooled text embedding and time_ids")
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        model_pred: Tensor = self.unet(noisy_latents, timesteps, hidden, added_cond_kwargs=conditions).sample
        return model_pred


def denoiser(components: Components, train_text_encoder: bool) -> TextConditionedDenoiser:
    """The denoiser of the components' family, around their own modules."""
    text_encoders = dict(zip(components.family.text_encoders, components.text_encoders, strict=True))
    kind = SDXLDenoiser if len(text_encoders) > 1 else TextConditionedDenoiser
    return kind(components.unet, text_encoders, train_text_encoder)


def _with_gradient(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
