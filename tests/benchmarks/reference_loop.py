"""An arm: the loop of diffusers' examples/dreambooth/train_dreambooth.py, stated anew.

As there: pictures are opened, scaled, cut and normalized for every item, and prompts tokenized; a batch is the instance
rows and then the class rows; the VAE encodes all of them every step, in the weight type; UNet and text encoder train
in one parameter group of torch's default AdamW; the loss is two means over halves; gradients are clipped in a pass of
their own and then zeroed, not dropped; the loss is read at the end of every step.

Left out: accelerate's wrappers of model, optimizer and loader, the progress bar, trackers, checkpoints, validation
pictures. Each costs time there and none changes the result, so leaving them out favours the reference. torchvision's
transforms are restated on Pillow, and pictures already have the training resolution, so that scaling is no work.

python tests/benchmarks/reference_loop.py WORKLOAD BASE, as a duel starts it; user_script.py runs the script itself.
"""

import random
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from workload import Workload

from booth.contract.jobs import Params
from booth_service.diffusion.components import Components, load_components

Draws = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # step -> posterior noise, noise, timesteps of its rows


@dataclass(frozen=True)
class Given:
    """What another loop drew: which (photo, class image) lie in each place of each step, and its random numbers."""

    order: list[tuple[int, int]]
    draws: Draws


class DreamBoothDataset(Dataset[dict[str, Tensor]]):
    """Pictures from disk, an instance and a class one for each item."""

    def __init__(self, workload: Workload, tokenizer: Any) -> None:
        self.params, self.tokenizer = workload.params, tokenizer
        self.photos = sorted((workload.folder / "photos").iterdir())
        self.class_images = sorted((workload.folder / "class_images").iterdir())

    def __len__(self) -> int:
        return max(len(self.photos), len(self.class_images))

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        photo, class_image = index if isinstance(index, tuple) else (index, index)
        return {
            "instance_images": self._pixels(self.photos[photo % len(self.photos)]),
            "instance_prompt_ids": self._ids(self.params.instance_prompt),
            "class_images": self._pixels(self.class_images[class_image % len(self.class_images)]),
            "class_prompt_ids": self._ids(self.params.class_prompt),
        }

    def _pixels(self, path: Path) -> Tensor:
        """Scale the short side, cut at random, to [0, 1], to [-1, 1]."""
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        size, (width, height) = self.params.resolution, image.size
        if min(width, height) != size:
            scale = size / min(width, height)
            image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (random.randint(0, side - size) for side in image.size)
        cut = image.crop((left, top, left + size, top + size))
        tensor = torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub(0.5).div(0.5)

    def _ids(self, prompt: str) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompt, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
        ids: Tensor = tokens.input_ids
        return ids


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Instance rows, then class rows, so that one forward does for both."""
    ids, pixels = ([e[f"{kind}_{what}"] for kind in ("instance", "class") for e in examples] for what in FIELDS)
    return {"input_ids": torch.cat(ids), "pixel_values": torch.stack(pixels).contiguous().float()}


FIELDS = ("prompt_ids", "images")


def train(
    workload: Workload,
    components: Components,
    *,
    device: torch.device,
    bf16: bool = False,
    given: Given | None = None,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train for params.steps steps; `on_step` hears each loss. Without `given` the loop draws for itself."""
    params, weight_dtype = workload.params, torch.bfloat16 if bf16 else torch.float32
    (text_encoder,), unet, vae = components.text_encoders, components.unet, components.vae
    noise_scheduler = components.noise_scheduler
    unet.requires_grad_(True).to(device).train()
    text_encoder.requires_grad_(True).to(device).train()
    vae.to(device, weight_dtype)
    trained = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(
        trained, lr=params.learning_rate, betas=(0.9, 0.999), weight_decay=params.weight_decay, eps=1e-8
    )
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loader = _loader(workload, components.tokenizers[0], given)
    for step, batch in enumerate(_endless(loader, params.steps)):
        pixel_values = batch["pixel_values"].to(device, weight_dtype)
        posterior = vae.encode(pixel_values).latent_dist
        if given is None:
            model_input = posterior.sample() * vae.config.scaling_factor
            noise = torch.randn_like(model_input)
            total = noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, total, (len(noise),), device=device).long()
        else:
            posterior_noise, noise, timesteps = (drawn.to(device) for drawn in given.draws(step))
            model_input = (posterior.mean + posterior.std * posterior_noise) * vae.config.scaling_factor
        noisy_model_input = noise_scheduler.add_noise(model_input, noise, timesteps)
        with _autocast(device, bf16):
            encoder_hidden_states = text_encoder(batch["input_ids"].to(device), return_dict=False)[0]
            model_pred = unet(noisy_model_input, timesteps, encoder_hidden_states, return_dict=False)[0]
        target = _target(noise_scheduler, model_input, noise, timesteps)
        loss = _loss(model_pred, target, params)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, params.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad(set_to_none=False)
        on_step(loss.detach().item())


def _loss(model_pred: Tensor, target: Tensor, params: Params) -> Tensor:
    model_pred, model_pred_prior = torch.chunk(model_pred, 2, dim=0)
    target, target_prior = torch.chunk(target, 2, dim=0)
    prior_loss = F.mse_loss(model_pred_prior.float(), target_prior.float(), reduction="mean")
    return F.mse_loss(model_pred.float(), target.float(), reduction="mean") + params.prior_loss_weight * prior_loss


def _target(noise_scheduler: Any, model_input: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    if noise_scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = noise_scheduler.get_velocity(model_input, noise, timesteps)
    return velocity


def _autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _loader(workload: Workload, tokenizer: Any, given: Given | None) -> DataLoader[Any]:
    dataset = DreamBoothDataset(workload, tokenizer)
    how: dict[str, Any] = {"shuffle": True} if given is None else {"sampler": given.order}
    return DataLoader(dataset, batch_size=workload.params.train_batch_size, collate_fn=collate, **how)


def _endless(loader: DataLoader[Any], steps: int) -> Iterable[dict[str, Tensor]]:
    """So many batches, over as many epochs as that takes."""
    done = 0
    while True:
        for batch in loader:
            if done == steps:
                return
            yield batch
            done += 1


def as_booth_draws(workload: Workload, components: Components) -> Given:
    """Booth's own order and random numbers for this workload, made ahead of the clock."""
    from booth_service.data.dataset import step_rows
    from booth_service.diffusion.noise import row_draws

    params = workload.params
    photos, class_images = workload.photos(), workload.class_images()
    side = params.resolution // components.vae_scale_factor
    shape = (int(components.vae.config.latent_channels), side, side)
    generator, order, drawn = torch.Generator(), [], []
    for step in range(params.steps):
        rows = step_rows(
            step,
            seed=params.seed,
            train_batch_size=params.train_batch_size,
            photo_subjects=[0] * len(photos),
            class_subjects=[0] * len(class_images),
            random_flip=False,
        )
        half = params.train_batch_size
        order += [(i.image, c.image) for i, c in zip(rows[:half], rows[half:], strict=True)]
        total = int(components.noise_scheduler.config.num_train_timesteps)
        draws = [row_draws(generator, params.seed, step, row.number, shape, total) for row in rows]
        noises = [torch.stack([draw[k] for draw in draws]) for k in (0, 1)]
        drawn.append((noises[0], noises[1], torch.tensor([draw[2] for draw in draws])))
    return Given(order, drawn.__getitem__)


def main(folder: str, base: str) -> int:
    from turns import Turn

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=0, world_size=1)
    workload, components = Workload(Path(folder), Path(base)), load_components(Path(base))
    given = as_booth_draws(workload, components)
    losses: list[float] = []
    turn = Turn.from_environment()

    def on_step(loss: float) -> None:
        losses.append(loss)
        turn.step_done()

    turn.begin()
    train(workload, components, device=torch.device("cpu"), given=given, on_step=on_step)
    turn.end(losses)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
