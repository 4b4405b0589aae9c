"""Stable Diffusion 1.5's topology with all widths divided by 8: as many tensors, and like shares of the work."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).parents[2]
SD15 = ROOT / "tests" / "configs" / "sd15.json"  # the published configuration
DIVISOR = 8
NUM_TOKENS = 77

# Vocabulary and normalization groups too: else the token table would weigh six times as much as in the real model,
# and a group would have an eighth of the real one's channels.
WIDTHS = {
    "unet": ("block_out_channels", "cross_attention_dim", "norm_num_groups"),
    "vae": ("block_out_channels", "norm_num_groups"),
    "text_encoder": ("hidden_size", "intermediate_size", "projection_dim", "vocab_size"),
}


def shrunk_config(part: str, divisor: int = DIVISOR) -> dict[str, Any]:
    """The published configuration of a part with its widths divided; 1 gives the real size."""
    config: dict[str, Any] = json.loads(SD15.read_text())[part]
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for name in WIDTHS.get(part, ()):
        value = config[name]
        config[name] = [width // divisor for width in value] if isinstance(value, list) else value // divisor
    return config


def make_parts(divisor: int = DIVISOR) -> dict[str, Any]:
    """Random modules on torch's default device, a DDPM scheduler, and a tokenizer of 77 tokens (tinyworld's words)."""
    tokenizer = CLIPTokenizer.from_pretrained(
        ROOT / "examples" / "tinyworld" / "base_model" / "tokenizer", model_max_length=NUM_TOKENS
    )
    text = shrunk_config("text_encoder", divisor) | {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {
        "vae": AutoencoderKL(**shrunk_config("vae", divisor)),
        "unet": UNet2DConditionModel(**shrunk_config("unet", divisor)),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "tokenizer": tokenizer,
        "scheduler": DDPMScheduler(**shrunk_config("scheduler")),
    }


def write_miniature(folder: Path, divisor: int = DIVISOR) -> Path:
    """Write the diffusers folder; equal calls write equal weights."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        **make_parts(divisor), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return folder
