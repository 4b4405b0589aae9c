"""A replica's pipeline of Stable Diffusion 1.5's shape with random weights, and tenants that take turns in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ceilings import synchronize
from diffusers import StableDiffusionPipeline
from miniature import make_parts

from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.sampling import draw
from booth_service.inference.skeleton import Skeleton, Slots
from booth_service.inference.weights import Weights, base_component

GUIDANCE_SCALE = 7.5
SLOT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Scale:
    """What is drawn on which device: widths divided by `divisor`, `batch` pictures together, each arm `goes` times."""

    device: torch.device
    dtype: torch.dtype
    divisor: int
    resolution: int
    steps: int
    reference_steps: int
    batch: int
    served_batch: int
    tenants: int
    goes: int

    def skeleton(self, folder: Path) -> Skeleton:
        """Random modules, written to `folder` and loaded as a replica loads them."""
        torch.manual_seed(0)
        with self.device:
            parts = make_parts(self.divisor)
        whole = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        whole.to(self.dtype).save_pretrained(folder)
        return Skeleton("base", folder, load_pipeline(folder, self.dtype).to(self.device))

    def pictures(self, pipeline: Any, count: int, *, batch_size: int, steps: int, resolution: int = 0) -> list[Any]:
        """That many pictures of one prompt, drawn as Booth draws."""
        return draw(
            pipeline,
            ["a photo of a dog"] * count,
            [""] * count,
            list(range(count)),
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=steps,
            resolution=resolution or self.resolution,
            batch_size=batch_size,
        )

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Of each go, after one that is not counted."""
        return [self.seconds_of(work) for _ in range(self.goes + 1)][1:]

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Of one go; the device is waited for."""
        synchronize(self.device)
        began = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - began


@dataclass(frozen=True)
class Tenant:
    """A model of its own: where its weights lie, and under which name they go into the live modules."""

    name: str
    weights: Weights

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.weights.values() for tensor in tensors.values())

    def activate(self, skeleton: Skeleton) -> None:
        """The skeleton draws with these weights, at the addresses that it always had."""
        for component, tensors in self.weights.items():
            skeleton.fill(component, self.name, tensors)


def in_host_memory(skeleton: Skeleton, scale: Scale, number: int) -> Tenant:
    """The base model's weights, a little moved, where the device reads them without a copy in between."""
    is_pinned = scale.device.type == "cuda"
    weights = {
        component: base_component(skeleton.folder, component, scale.dtype, pinned=is_pinned)
        for component in skeleton.components
    }
    for tensors in weights.values():
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.01 * number)
    return Tenant(f"tenant-{number}", weights)


def on_device(skeleton: Skeleton, scale: Scale, number: int) -> Tenant:
    """The same, beside the live modules on the device itself."""
    tenant = in_host_memory(skeleton, scale, number)
    tenant.activate(skeleton)
    slots = Slots(SLOT_BYTES)
    slots.keep(tenant.name, skeleton.weights_of(tenant.name))
    kept = slots.find(tenant.name)
    assert kept is not None, "the device has no room for a second model"
    return Tenant(tenant.name, kept)


def addresses(skeleton: Skeleton) -> list[int]:
    """Where the live weights lie: graphs that were captured or compiled read them there."""
    parts = [getattr(skeleton.pipeline, component) for component in skeleton.components]
    return [tensor.data_ptr() for part in parts for tensor in part.state_dict().values()]
