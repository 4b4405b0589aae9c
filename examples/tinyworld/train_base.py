"""Train the tinyworld base model from scratch and save it as an ordinary StableDiffusionPipeline folder.

    python examples/tinyworld/train_base.py --work-dir /tmp/tinyworld

Stages: render pictures, train the autoencoder, encode, train U-Net and text encoder, export in fp16.
Each stage continues where an interrupted run stopped; equal seeds give equal pictures and captions. It uses a GPU when
there is one; on two CPU cores it takes about an hour. Afterwards `quality.py` says how good the result is.
"""

import argparse
import math
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizer import MAX_LENGTH, build
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import RESOLUTION_PX, random_caption, random_scene, render

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_PICTURES = 24_000
CAPTIONS_PER_PICTURE = 4
LATENT_CHANNELS = 5
VAE_STEPS, VAE_BATCH, VAE_LEARNING_RATE = 9_000, 8, 1.5e-3
KL_WEIGHT = 1e-7  # of the mean; larger weights empty latent channels
UNET_BATCH, WARMUP = 32, 150
EMA_DECAY = 0.998
SAVE_EVERY = 500


@dataclass(frozen=True)
class Phase:
    """A stretch of denoiser training towards one kind of target."""

    name: str
    steps: int
    learning_rate: float
    prediction_type: str

    def scheduler(self) -> DDIMScheduler:
        """Stable Diffusion's noise schedule; for velocities ended in pure noise (Lin et al. 2024)."""
        to_pure_noise = self.prediction_type == "v_prediction"
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=to_pure_noise,
            timestep_spacing="trailing" if to_pure_noise else "leading",
        )


PHASES = (
    Phase("denoiser", 7_000, 1.2e-3, "epsilon"),
    # Stable Diffusion's schedule leaves 7 % of the signal in its last step. With only 16x16 latent cells that is enough
    # to read the main colour from, so that a picture's seed decides its colours, against prompt and subject.
    Phase("denoiser-velocity", 3_000, 1.0e-3, "v_prediction"),
)


def render_pictures(work_dir: Path, count: int) -> tuple[np.ndarray, list[list[str]]]:
    """Pictures (count, 64, 64, 3) uint8 and for each a few captions; rendered once, then read from disk."""
    path = work_dir / "pictures.npy"
    scenes = [random_scene(seed) for seed in range(count)]
    captions = []
    for seed, scene in enumerate(scenes):
        rng = random.Random(seed + 1_000_003)
        captions.append([random_caption(scene, rng) for _ in range(CAPTIONS_PER_PICTURE)])
    if not path.exists():
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes])
        np.save(work_dir / "pictures.tmp.npy", pictures)
        (work_dir / "pictures.tmp.npy").rename(path)
    return np.load(path, mmap_mode="r"), captions


def batch_indices(seed: int, step: int, size: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, step]).integers(0, count, size)


def cosine(step: int, steps: int, peak: float) -> float:
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def as_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 (B, 64, 64, 3) to float (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(DEVICE)


def save_state(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION_PX,
        mid_block_add_attention=False,
    ).to(DEVICE)


def train_vae(pictures: np.ndarray, work_dir: Path, steps: int) -> AutoencoderKL:
    """Reconstruction (L1 + MSE) with a KL term small enough to keep every latent channel alive."""
    torch.manual_seed(1)
    vae, path = new_vae(), work_dir / "vae.pt"
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_LEARNING_RATE, weight_decay=0.01)
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.time()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, VAE_LEARNING_RATE)
        pixels = as_pixels(pictures[np.sort(batch_indices(11, step, VAE_BATCH, len(pictures)))])
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(DEVICE)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - pixels
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(path, {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
            psnr = 10 * math.log10(4 / error.square().mean().item())
            spread = posterior.mean.float().std(dim=(0, 2, 3)).tolist()
            print(f"vae {step + 1}/{steps} loss {loss.item():.4f} psnr {psnr:.1f} dB "
                  f"channel std {[round(x, 2) for x in spread]} {time.time() - began:.0f} s", flush=True)  # fmt: skip
    return vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, work_dir: Path) -> Tensor:
    """Latent means of all pictures, divided by their own standard deviation, which becomes the scaling factor."""
    path = work_dir / "latents.pt"
    if not path.exists():
        batches = [
            vae.encode(as_pixels(pictures[i : i + 100])).latent_dist.mean.cpu() for i in range(0, len(pictures), 100)
        ]
        torch.save(torch.cat(batches), path)
    latents = torch.load(path, weights_only=True)
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    return latents * vae.config.scaling_factor


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION_PX // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(DEVICE)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).to(DEVICE)


def new_model(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    torch.manual_seed(2)
    return nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)})


def train_denoiser(
    model: nn.ModuleDict,
    phase: Phase,
    latents: Tensor,
    captions: list[list[str]],
    tokenizer: CLIPTokenizer,
    work_dir: Path,
) -> nn.ModuleDict:
    """U-Net and text encoder together, 10 % empty captions; returns the moving average."""
    steps, is_velocity = phase.steps, phase.prediction_type == "v_prediction"
    flat = [caption for group in captions for caption in group] + [""]
    tokens = tokenizer(
        flat, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.01)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY))
    scheduler, path, start = phase.scheduler(), work_dir / f"{phase.name}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=DEVICE)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    model.train()
    began, running = time.time(), 1.0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, phase.learning_rate)
        rng = np.random.default_rng([13, step])
        index = rng.integers(0, len(latents), UNET_BATCH)
        caption = index * CAPTIONS_PER_PICTURE + rng.integers(0, CAPTIONS_PER_PICTURE, UNET_BATCH)
        caption[rng.random(UNET_BATCH) < 0.1] = len(flat) - 1
        generator = torch.Generator().manual_seed(step)
        clean = latents[torch.from_numpy(index)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (UNET_BATCH,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(DEVICE)
        hidden = model["text_encoder"](tokens[torch.from_numpy(caption)].to(DEVICE))[0]
        target = scheduler.get_velocity(clean, noise, timesteps) if is_velocity else noise
        loss = F.mse_loss(model["unet"](noisy, timesteps.to(DEVICE), hidden).sample, target.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update_parameters(model)
        running += 0.01 * (loss.item() - running)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(path, {"model": model.state_dict(), "ema": ema.state_dict(), "step": step + 1,
                              "optimizer": optimizer.state_dict()})  # fmt: skip
            print(f"{phase.name} {step + 1}/{steps} loss {running:.4f} {time.time() - began:.0f} s", flush=True)
    model.load_state_dict(ema.module.state_dict())
    return model.eval()


def export(vae: AutoencoderKL, model: nn.ModuleDict, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save the fp16 pipeline folder that Booth takes as a base model."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=PHASES[-1].scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
    # transformers would load the text encoder in half precision, while diffusers loads the rest in single precision
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    build(folder / "tokenizer")  # adds vocab.json and merges.txt, which older readers look for
    shutil.copy(HERE / "recipe.json", folder / "booth_recipe.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="where checkpoints and rendered pictures are kept")
    parser.add_argument("--output", type=Path, default=HERE / "base_model")
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--threads", type=int, default=1, help="more than one only helps on an idle machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    pictures, captions = render_pictures(arguments.work_dir, arguments.pictures)
    print(f"{len(pictures)} pictures, for example: {captions[0]}", flush=True)
    tokenizer = build(arguments.work_dir / "tokenizer")
    vae = train_vae(pictures, arguments.work_dir, arguments.vae_steps)
    latents = encode(vae, pictures, arguments.work_dir)
    model = new_model(tokenizer)
    for phase in PHASES:
        model = train_denoiser(model, phase, latents, captions, tokenizer, arguments.work_dir)
    export(vae, model, tokenizer, arguments.output)
    print(f"saved to {arguments.output}", flush=True)


if __name__ == "__main__":
    main()
