"""A random Stable Diffusion folder of the real topology in a few hundred kilobytes, made in a second."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizer import MAX_LENGTH, build
from transformers import CLIPTextConfig, CLIPTextModel

LATENT_CHANNELS = 3


def write_tiny_base(folder: Path, prediction_type: str = "epsilon", *, version: int = 1) -> Path:
    """Write the folder; equal calls write equal weights. 32 px pictures, 16 px latents, 24 tokens.

    Version 2 has the topology of Stable Diffusion 2.x: linear projections, other head counts by block, and an
    activation and a projection width of its own in the text encoder.
    """
    torch.manual_seed(0)
    tokenizer = build(folder.with_name(folder.name + "-tokenizer"))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2 if version == 1 else (2, 4),
        use_linear_projection=version == 2,
        norm_num_groups=4,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16 if version == 1 else 12,
        hidden_act="quick_gelu" if version == 1 else "gelu",
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
