"""Micro-batches of a rank, made ahead of the step that needs them, and moved to its device."""

# R = rows of a micro-batch;  C, h, w = latent channels and cells;  H, W = pixels

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from booth.contract.jobs import Params
from booth_service.data.dataset import Row, micro_batches, rank_rows, step_rows
from booth_service.diffusion.loss import row_weights
from booth_service.diffusion.noise import row_draws
from booth_service.training.cache import Cache


@dataclass(frozen=True)
class Batch:
    """Rows of one forward, all of one size.

    moments (R, 2, C, h, w), or pixels (R, 3, H, W) where the picture is to be encoded; posterior_noise and noise
    (R, C, h, w); timesteps, numbers (of the rows in the step), is_class, prompts (numbers in the table of prompts),
    weights, all (R,); time_ids (R, 6); masks (R, 1, h, w) or None.
    """

    numbers: Tensor
    is_class: Tensor
    moments: Tensor | None
    pixels: Tensor | None
    posterior_noise: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: Tensor
    weights: Tensor
    time_ids: Tensor
    masks: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; from pinned memory the copies do not wait."""
        return Batch(**{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})


class Batches:
    """Makes each step's micro-batches in a thread, one step ahead; a step depends on (seed, step) alone."""

    def __init__(
        self,
        params: Params,
        cache: Cache,
        *,
        num_train_timesteps: int,
        latent_channels: int,
        rank: int,
        ranks: int,
        micro_batch_size: int,
    ) -> None:
        self.params, self.cache, self.latent_channels = params, cache, latent_channels
        self.num_train_timesteps = num_train_timesteps
        self.rank, self.ranks, self.micro_batch_size = rank, ranks, micro_batch_size
        pictures = [*cache.photos, *cache.class_images]
        self.prompts = sorted({prompt for picture in pictures for prompt in picture.prompts})
        self._numbers = {prompt: number for number, prompt in enumerate(self.prompts)}
        self._generator = torch.Generator()
        self._photo_subjects = [photo.subject for photo in cache.photos]
        self._class_subjects = [image.subject for image in cache.class_images]

    @property
    def num_rows(self) -> int:
        """Rows of a step over all ranks."""
        return self.params.train_batch_size * (2 if self._class_subjects else 1)

    def all_rows(self, step: int) -> list[Row]:
        """The rows of a step over all ranks."""
        return step_rows(
            step,
            seed=self.params.seed,
            train_batch_size=self.params.train_batch_size,
            photo_subjects=self._photo_subjects,
            class_subjects=self._class_subjects,
            random_flip=self.params.random_flip,
            photo_shapes=self.cache.shapes,
        )

    def from_step(self, start: int, device: torch.device) -> Iterator[list[Batch]]:
        """The micro-batches of every step from `start` on, on the device."""
        pin = device.type == "cuda"
        with ThreadPoolExecutor(1, "batches") as pool:
            coming = pool.submit(self.of_step, start, pin)
            for step in range(start, self.params.steps):
                ready = coming.result()
                if step + 1 < self.params.steps:
                    coming = pool.submit(self.of_step, step + 1, pin)
                yield [batch.to(device) for batch in ready]

    def of_step(self, step: int, pin: bool = False) -> list[Batch]:
        """This rank's micro-batches of a step, on the CPU."""
        own = rank_rows(self.all_rows(step), self.rank, self.ranks)
        return [self._batch(rows, step, pin) for rows in micro_batches(own, self.micro_batch_size)]

    def _batch(self, rows: list[Row], step: int, pin: bool) -> Batch:
        cache, params = self.cache, self.params
        height, width = (side // cache.vae_scale_factor for side in cache.targets[rows[0].shape])
        shape = (self.latent_channels, height, width)
        draws = [
            row_draws(self._generator, params.seed, step, row.number, shape, self.num_train_timesteps) for row in rows
        ]
        is_class = torch.tensor([row.is_class for row in rows])
        batch = Batch(
            numbers=torch.tensor([row.number for row in rows]),
            is_class=is_class,
            moments=torch.stack([cache.moments[cache.key(row)] for row in rows]) if cache.is_cached else None,
            pixels=None if cache.is_cached else torch.stack([cache.pixels(row) for row in rows]),
            posterior_noise=torch.stack([draw[0] for draw in draws]),
            noise=torch.stack([draw[1] for draw in draws]),
            timesteps=torch.tensor([draw[2] for draw in draws]),
            prompts=torch.tensor(
                [self._numbers[row.prompt_of(cache.picture(row.is_class, row.image))] for row in rows]
            ),
            weights=row_weights(is_class, params.train_batch_size, params.prior_loss_weight),
            time_ids=torch.tensor([cache.frame(row).time_ids for row in rows], dtype=torch.float32),
            masks=torch.stack([cache.mask(row) for row in rows]) if cache.has_masks else None,
        )
        return _pinned(batch) if pin else batch


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _pinned(batch: Batch) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: v.pin_memory() if isinstance(v, Tensor) else v for name, v in values.items()})
