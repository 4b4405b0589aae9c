"""The training loop of one rank, on torch.distributed: any launcher that sets up a process group will do."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from PIL import ImageOps
from torch import Tensor

from booth.contract.attempts import Brief, StoredFile
from booth.contract.jobs import TRAINING_PHASE, Progress
from booth.contract.states import JobState
from booth_service.data.dataset import Row, rank_rows, step_rows
from booth_service.data.images import load_square
from booth_service.diffusion.components import Components, load_components
from booth_service.diffusion.denoiser import add_time_ids, denoiser
from booth_service.diffusion.latents import encode_moments, sample_latents
from booth_service.diffusion.loss import row_losses, row_weights, target
from booth_service.diffusion.noise import row_draws
from booth_service.diffusion.prompts import input_ids
from booth_service.errors import AttemptEnded, NotFinite
from booth_service.plan import Plan
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training import checkpoint, zero


@dataclass(frozen=True)
class WorkerConfig:
    """All that a rank gets. `pulse` opens the line to the control plane (rank 0 alone uses it); `export` stores the
    trained weights and is called by rank 0 at the end."""

    brief: Brief
    plan: Plan
    store: ObjectStore
    scratch_dir: str | None
    class_image_keys: list[str]
    pulse: Callable[[JobState, Progress], Any]
    export: Callable[[Mapping[str, Mapping[str, Tensor]]], list[StoredFile]]


@dataclass
class Cache:
    """What never changes during a job: posterior moments of all pictures and the tokens of both prompts.

    photos, class_images: [upright] or [upright, mirrored], each (N, 2, C, h, w) fp32 on the CPU; ids (2, L_e) for
    each text encoder, the instance prompt's in row 0, the class prompt's in row 1.
    """

    photos: list[Tensor]
    class_images: list[Tensor]
    ids: tuple[Tensor, ...]


def train_loop_per_worker(config: dict[str, Any]) -> list[StoredFile] | None:
    """Train for params.steps optimizer steps, checkpoint on the way, export at the end (rank 0 returns the files).

    Raises NotFinite before an update that would spoil the weights, AttemptEnded when the owner wants it to stop.
    """
    c: WorkerConfig = config["worker"]
    brief, plan, params = c.brief, c.plan, c.brief.params
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if plan.use_gpu else torch.device("cpu")
    if not plan.use_gpu:
        torch.set_num_threads(1)  # ranks share the cores; more threads only wait for each other

    # ---- model, data, engine
    progress = Progress(phase="encoding pictures", total_steps=len(brief.photos) + len(c.class_image_keys))
    pulse = c.pulse(JobState.TRAINING, progress) if rank == 0 else None
    if pulse:
        pulse.__enter__()
    components = load_components(materialize(c.store, brief.base_files, c.scratch_dir))
    cache = build_cache(c, components, device, pulse and partial(say_encoded, pulse, progress))
    module = denoiser(components, params.train_text_encoder).to(device)
    groups = module.parameter_groups(params.learning_rate, params.text_encoder_learning_rate)
    rates = [params.learning_rate, params.text_encoder_learning_rate][: len(groups)]
    engine = zero.engine(
        module,
        groups,
        zero_stage=plan.zero_stage,
        micro_batch_size=plan.micro_batch_size,
        max_grad_norm=params.max_grad_norm,
        weight_decay=params.weight_decay,
        bf16=plan.use_gpu,
    )
    dtype = next(engine.module.parameters()).dtype
    scheduler, scaling = components.noise_scheduler, components.vae.config.scaling_factor
    generator = torch.Generator()
    square = (params.resolution, params.resolution)
    sizes = add_time_ids(square, (0, 0), square).to(device)

    # ---- loop state
    step = checkpoint.read(engine, c.store, brief.resume_key) if brief.resume_key else 0
    progress = Progress(phase=TRAINING_PHASE, step=step, total_steps=params.steps)
    began, first_step = time.monotonic(), step
    if pulse:
        pulse.say(progress, note=f"training: {plan.why}" + (f", from step {step}" if step else ""))

    while step < params.steps:
        # ---- once in a while: checkpoint
        due = step > first_step and step % params.checkpoint_interval_steps == 0
        if due:
            key = checkpoint.write(engine, c.store, step, brief.fence, partial(checkpoint_key, brief, step))
            if pulse:
                pulse.say(progress, checkpoint_key=key)

        # ---- one step
        rows = rank_rows(rows_of(step, c), rank, ranks)
        latents, noise, timesteps, ids, is_class = batch(rows, step, params.seed, cache, scheduler, scaling, generator)
        latents, noise, timesteps = latents.to(device), noise.to(device), timesteps.to(device)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        ids = tuple(each.to(device) for each in ids)
        time_ids = sizes.expand(len(rows), -1)
        model_pred = engine(noisy_latents.to(dtype), timesteps, ids, time_ids=time_ids)
        losses = row_losses(model_pred, target(scheduler, latents, noise, timesteps))
        weights = row_weights(is_class.to(device), params.train_batch_size, params.prior_loss_weight)
        loss = (losses * weights).sum()
        summary = reduce_summary(losses, loss, is_class, stop=bool(pulse and pulse.desired != "run"))
        refuse_bad(summary, step, rows, losses)
        warmed = min(1.0, (step + 1) / max(1, params.lr_warmup_steps))
        zero.set_learning_rates(engine, [rate * warmed for rate in rates])
        engine.backward(loss * ranks)  # ZeRO averages gradients over ranks; the loss is a sum over them
        engine.step()
        step += 1

        # ---- say so
        if pulse:
            progress = describe(
                summary, step, params.steps, params.train_batch_size, began, first_step, bool(cache.class_images)
            )
            pulse.say(progress)

    files = None
    if pulse:
        pulse.say(progress.model_copy(update={"phase": "publishing", "eta_s": None}), state=JobState.PUBLISHING)
        files = c.export({name: part.state_dict() for name, part in module.trained().items()})
        pulse.__exit__(None, None, None)
    dist.barrier()
    return files


def checkpoint_key(brief: Brief, step: int, name: str) -> str:
    """Where this attempt's checkpoints lie."""
    return keys.checkpoint_file(brief.tenant_id, brief.job_id, brief.attempt, step, name)


def rows_of(step: int, c: WorkerConfig) -> list[Row]:
    """All rows of a step, over all ranks."""
    params = c.brief.params
    return step_rows(
        step,
        seed=params.seed,
        train_batch_size=params.train_batch_size,
        num_photos=len(c.brief.photos),
        num_class_images=len(c.class_image_keys),
        random_flip=params.random_flip,
    )


def say_encoded(pulse: Any, progress: Progress, done: int) -> None:
    """Tell that `done` pictures are encoded."""
    pulse.say(progress.model_copy(update={"step": done}))


def build_cache(
    c: WorkerConfig, components: Components, device: torch.device, on_encoded: Callable[[int], None] | None
) -> Cache:
    """Encode every picture once; the VAE leaves the device afterwards. `on_encoded` is told how many are done."""
    params = c.brief.params
    vae = components.vae.to(device)
    done = 0

    def moments(object_keys: list[str]) -> list[Tensor]:
        nonlocal done
        variants: list[list[Tensor]] = [[], []] if params.random_flip else [[]]
        for key in object_keys:
            image = load_square(c.store.get(key), params.resolution)
            for variant, shown in zip(variants, (image, ImageOps.mirror(image)), strict=False):
                variant.append(encode_moments(vae, shown, device))
            done += 1
            if on_encoded:
                on_encoded(done)
        return [torch.stack(variant) for variant in variants if variant]

    cache = Cache(
        moments([photo.key for photo in c.brief.photos]),
        moments(c.class_image_keys),
        input_ids(components.tokenizers, [params.instance_prompt, params.class_prompt]),
    )
    vae.to("cpu")
    return cache


def batch(
    rows: list[Row], step: int, seed: int, cache: Cache, scheduler: Any, scaling: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """latents and noise (R, C, h, w), timesteps (R,), ids (R, L_e) each, is_class (R,) of these rows, on the CPU."""
    moments = torch.stack([(cache.class_images if r.is_class else cache.photos)[int(r.flip)][r.image] for r in rows])
    shape, num_timesteps = tuple(moments.shape[2:]), scheduler.config.num_train_timesteps
    draws = [row_draws(generator, seed, step, row.number, shape, num_timesteps) for row in rows]
    latents = sample_latents(moments, torch.stack([draw[0] for draw in draws]), scaling)
    noise = torch.stack([draw[1] for draw in draws])
    timesteps = torch.tensor([draw[2] for draw in draws])
    is_class = torch.tensor([row.is_class for row in rows])
    return latents, noise, timesteps, tuple(ids[is_class.long()] for ids in cache.ids), is_class


def reduce_summary(losses: Tensor, loss: Tensor, is_class: Tensor, stop: bool) -> Tensor:
    """Over all ranks: [loss, instance sum, class sum, instance rows, class rows, not finite, stop], fp64 on the CPU."""
    losses = losses.detach()
    mask = is_class.to(losses.device)
    bad = (~torch.isfinite(losses)).any()
    parts = [loss.detach(), losses[~mask].sum(), losses[mask].sum(), (~mask).sum(), mask.sum(), bad]
    summary = torch.stack(
        [part.double() for part in parts] + [torch.tensor(float(stop), device=losses.device).double()]
    )
    dist.all_reduce(summary)
    return summary.cpu()


def refuse_bad(summary: Tensor, step: int, rows: list[Row], losses: Tensor) -> None:
    """Stop all ranks alike, before the update, at a loss that is not finite or at the owner's wish."""
    if summary[6] > 0:
        raise AttemptEnded("the owner asked the job to stop")
    if summary[5] > 0:
        mine = [
            row for row, value in zip(rows, losses.tolist(), strict=True) if not torch.isfinite(torch.tensor(value))
        ]
        named = (
            ", ".join(f"{'class image' if row.is_class else 'photo'} {row.image}" for row in mine)
            or "another rank's rows"
        )
        raise NotFinite(f"the loss of step {step} is not a finite number ({named}); the weights were not updated")


def describe(
    summary: Tensor, step: int, steps: int, train_batch_size: int, began: float, first_step: int, with_prior: bool
) -> Progress:
    """The progress after `step` steps."""
    loss, instance, prior, instances, classes = summary[:5].tolist()
    pace = (step - first_step) / max(1e-9, time.monotonic() - began)
    return Progress(
        phase=TRAINING_PHASE,
        step=step,
        total_steps=steps,
        loss=loss,
        instance_loss=instance / max(1, instances),
        prior_loss=prior / classes if classes else None,
        images_per_second=pace * train_batch_size * (2 if with_prior else 1),
        eta_s=(steps - step) / pace,
    )
