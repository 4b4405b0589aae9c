"""A random Stable Diffusion XL folder of the real topology in a few hundred kilobytes, made in a second."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizer import MAX_LENGTH, build
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LATENT_CHANNELS = 3
WIDTHS = (16, 24)  # of the two text encoders; the UNet reads both side by side
POOLED_WIDTH = 20
TIME_WIDTH = 8  # of each of the six time ids
OVERFLOW = 2e5  # the VAE's first weights times this are below fp16's largest number, its activations above


def write_tiny_sdxl_base(folder: Path) -> Path:
    """Write the folder; equal calls write equal weights. 32 px pictures, 16 px latents, 24 tokens.

    As in SDXL the second tokenizer pads with another token, and the VAE overflows in fp16 and therefore asks for fp32.
    """
    torch.manual_seed(0)
    tokenizer = build(folder.with_name(folder.name + "-tokenizer"))
    tokenizer_2 = CLIPTokenizer.from_pretrained(folder.with_name(folder.name + "-tokenizer"), pad_token="!")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.6,
        force_upcast=True,
    )
    with torch.no_grad():
        for half in (vae.encoder, vae.decoder):
            half.conv_in.weight.mul_(OVERFLOW)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * TIME_WIDTH,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(tokenizer, WIDTHS[0], layers=2, hidden_act="quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, WIDTHS[1], layers=3, hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, hidden_act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act=hidden_act,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
