"""A random IP-Adapter for a tiny base model, in the layout of the published ones, with a tiny image encoder."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

WEIGHTS = "ip-adapter_tiny.safetensors"
TOKENS = 4  # what the plain kind makes of a photo
PLUS_TOKENS = 3
ENCODER_WIDTH, PROJECTED_WIDTH = 24, 12
LOUD = 8.0  # random weights times this, so that a photo changes pictures by more than rounding

Kind = Literal["plain", "plus"]


def write_tiny_adapter(folder: Path, unet: Any, kind: Kind = "plain", *, seed: int = 0) -> Path:
    """Write `<folder>/ip-adapter_tiny.safetensors` and `<folder>/image_encoder/`; equal calls write equal weights.

    "plain" reads the encoder's projected embedding, "plus" its last but one hidden states, by a resampler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    width = unet.config.cross_attention_dim
    projection = _plain(width) if kind == "plain" else _plus(width)
    save_file(projection | _attention(unet, width), folder / WEIGHTS)
    config = CLIPVisionConfig(
        hidden_size=ENCODER_WIDTH,
        intermediate_size=32,
        projection_dim=PROJECTED_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder


def _attention(unet: Any, width: int) -> dict[str, Tensor]:
    """Keys and values for every cross-attention layer, numbered as the published files number them."""
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    tensors = {}
    for place, name in enumerate(cross):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for which in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * place + 1}.{which}.weight"] = LOUD * torch.randn(layer.to_k.out_features, width)
    return tensors


def _plain(width: int) -> dict[str, Tensor]:
    return {
        "image_proj.proj.weight": LOUD * torch.randn(TOKENS * width, PROJECTED_WIDTH),
        "image_proj.proj.bias": torch.randn(TOKENS * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }


def _plus(width: int) -> dict[str, Tensor]:
    """A resampler by the published tensors' names (IP-Adapter's resampler.py), always of four layers."""
    inner = 64  # one head: published resamplers have heads of 64
    shapes = {
        "latents": (1, PLUS_TOKENS, width),
        "proj_in.weight": (width, ENCODER_WIDTH),
        "proj_in.bias": (width,),
        "proj_out.weight": (width, width),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for layer in range(4):
        shapes |= {
            f"layers.{layer}.0.norm1.weight": (width,),
            f"layers.{layer}.0.norm1.bias": (width,),
            f"layers.{layer}.0.norm2.weight": (width,),
            f"layers.{layer}.0.norm2.bias": (width,),
            f"layers.{layer}.0.to_q.weight": (inner, width),
            f"layers.{layer}.0.to_kv.weight": (2 * inner, width),
            f"layers.{layer}.0.to_out.weight": (width, inner),
            f"layers.{layer}.1.0.weight": (width,),
            f"layers.{layer}.1.0.bias": (width,),
            f"layers.{layer}.1.1.weight": (4 * width, width),
            f"layers.{layer}.1.3.weight": (width, 4 * width),
        }
    return {f"image_proj.{name}": torch.randn(shape) for name, shape in shapes.items()}
