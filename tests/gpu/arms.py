"""Loops whose steps are timed on one device: Booth's whole loop, the reference's, and the bare step with variations."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reference_loop
import torch
import torch.nn.functional as F
import workload as workloads
from bare_loop import Update, deepspeed_step, torch_step
from ceilings import synchronize
from miniature import make_parts
from torch import Tensor

from booth.contract.jobs import Params, Progress
from booth_service.diffusion.components import FAMILIES, Components
from booth_service.diffusion.denoiser import TextConditionedDenoiser, denoiser
from booth_service.diffusion.prompts import input_ids
from booth_service.plan import Plan
from booth_service.training.engine import Ema, Engine
from booth_service.training.speed import FlopCount
from booth_service.training.worker import Task, train


@dataclass(frozen=True)
class Setting:
    """What is timed: the size of model and pictures, and how many blocks of how many steps after a warm-up."""

    folder: Path
    device: torch.device
    bf16: bool
    divisor: int
    resolution: int
    warm_up: int
    blocks: int
    block_steps: int

    @property
    def steps(self) -> int:
        return self.warm_up + self.blocks * self.block_steps

    def workload(self, train_batch_size: int) -> workloads.Workload:
        """B instance and B class rows a step."""
        folder = self.folder / f"rows-{train_batch_size}"
        if not folder.exists():
            workloads.write(folder, folder, self.resolution, self.steps, train_batch_size)
            params = json.loads((folder / "params.json").read_text())
            params["precision"] = "bf16" if self.bf16 else "fp32"
            (folder / "params.json").write_text(json.dumps(params))
        return workloads.Workload(folder, folder)

    def components(self) -> Components:
        """Random modules on the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        with self.device:
            parts = make_parts(self.divisor)
        for name in ("unet", "vae", "text_encoder"):
            parts[name].requires_grad_(False).eval()
        return Components(
            family=FAMILIES["StableDiffusionPipeline"],
            tokenizers=[parts["tokenizer"]],
            text_encoders=[parts["text_encoder"]],
            vae=parts["vae"],
            unet=parts["unet"],
            noise_scheduler=parts["scheduler"],
            pipeline=None,
        )


class Clock:
    """Seconds a step, block by block; the device is waited for at the ends of blocks alone."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._steps, self._began = setting, 0, 0.0
        self.seconds: list[float] = []

    def step_done(self) -> None:
        self._steps += 1
        into = self._steps - self._setting.warm_up
        if into >= 0 and into % self._setting.block_steps == 0:
            synchronize(self._setting.device)
            now = time.perf_counter()
            if into:
                self.seconds.append((now - self._began) / self._setting.block_steps)
            self._began = now


class ClockDesk:
    """Implements `Desk`: its `wants_stop` is where a step ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.progress = clock, Progress()

    def say(self, progress: Progress, note: str | None = None) -> None:
        self.progress = progress

    def wants_stop(self) -> bool:
        self.clock.step_done()
        return False

    def has_enough(self) -> bool:
        return False

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        return 0

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        pass

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        pass


def booth(setting: Setting, train_batch_size: int) -> tuple[list[float], int]:
    """Booth's loop as a job runs it on one device: seconds a step, and peak bytes."""
    workload, clock = setting.workload(train_batch_size), Clock(setting)
    plan = Plan(1, setting.device.type == "cuda", 1.0, 2 * train_batch_size, 1, 0, "one device")
    desk = ClockDesk(clock)
    train(Task(workload.params, plan, setting.components(), workload.photos(), workload.class_images()), desk)
    return clock.seconds, desk.progress.peak_memory_bytes or 0


def reference(setting: Setting, train_batch_size: int) -> list[float]:
    """The reference's loop."""
    clock = Clock(setting)
    reference_loop.train(
        setting.workload(train_batch_size),
        setting.components(),
        device=setting.device,
        bf16=setting.bf16,
        on_step=lambda loss: clock.step_done(),
    )
    return clock.seconds


Change = Callable[[TextConditionedDenoiser], None]


def bare(
    setting: Setting,
    train_batch_size: int,
    *,
    zero_stage: int | None = None,
    change: Change = lambda module: None,
    optimizer: dict[str, Any] | None = None,
    capture: bool = False,
) -> list[float]:
    """The bare step on one fixed batch: on plain torch, or on DeepSpeed's engine; `change` prepares the module."""
    components = setting.components()
    params = setting.workload(train_batch_size).params
    module = denoiser(components, train_text_encoder=True)
    change(module)
    forward, update = _engine(module, params, setting, zero_stage, optimizer or {})
    loss_of = fixed_loss(components, forward, params, setting, autocast=setting.bf16 and zero_stage is None)

    def step() -> None:
        update(loss_of())

    work, clock = (_captured(step, module) if capture else step), Clock(setting)
    for _ in range(setting.steps):
        work()
        clock.step_done()
    return clock.seconds


def flops(setting: Setting, train_batch_size: int) -> tuple[int, int]:
    """Arithmetic of a step's forward and backward, and how many parameters it trains."""
    components = setting.components()
    module = denoiser(components, train_text_encoder=True)
    params = setting.workload(train_batch_size).params
    with FlopCount() as counted:
        fixed_loss(components, module, params, setting, autocast=setting.bf16)().backward()
    return counted.total, sum(p.numel() for p in module.parameters() if p.requires_grad)


def fixed_loss(
    components: Components, forward: Any, params: Params, setting: Setting, autocast: bool
) -> Callable[[], Tensor]:
    """A step's loss on random latents and this job's prompts, always the same ones."""
    device, rows = setting.device, 2 * params.train_batch_size
    side = params.resolution // components.vae_scale_factor
    shape = (rows, int(components.vae.config.latent_channels), side, side)
    latents, noise = torch.randn(shape, device=device), torch.randn(shape, device=device)
    scheduler = components.noise_scheduler
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (rows,), device=device)
    half = params.train_batch_size
    prompts = [params.instance_prompt] * half + [params.class_prompt] * half
    ids = tuple(table.to(device) for table in input_ids(components.tokenizers, prompts))
    dtype = torch.bfloat16 if setting.bf16 and not autocast else torch.float32

    def loss() -> Tensor:
        noisy_latents = scheduler.add_noise(latents, noise, timesteps).to(dtype)
        # Captured graphs must not keep the casts of weights that autocast caches.
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast, cache_enabled=False):
            model_pred = forward(noisy_latents, timesteps, input_ids=ids)
        return F.mse_loss(model_pred.float(), noise) * 2  # mean over instance rows + mean over class rows

    return loss


def _engine(
    module: TextConditionedDenoiser, params: Params, setting: Setting, zero_stage: int | None, how: dict[str, Any]
) -> tuple[Any, Update]:
    if zero_stage is None:
        return torch_step(module, params, **how)
    return deepspeed_step(module, params, zero_stage, bf16=setting.bf16)


def _captured(step: Callable[[], None], module: TextConditionedDenoiser) -> Callable[[], None]:
    """The whole step as one CUDA graph. Gradients are absent when it is recorded: replays overwrite them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    module.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay  # type: ignore[no-any-return]


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """cuDNN tries its convolutions and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
