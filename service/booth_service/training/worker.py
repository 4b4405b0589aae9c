"""The training loop of one rank, on torch.distributed: any launcher that sets up a process group will do."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from booth.contract.jobs import TRAINING_PHASE, Params, Progress
from booth_service.data.dataset import Picture
from booth_service.diffusion import denoiser as denoisers
from booth_service.diffusion import placeholder
from booth_service.diffusion.components import Components
from booth_service.diffusion.latents import encode_pixels, sample_latents
from booth_service.diffusion.loss import min_snr_weights, row_losses, target
from booth_service.diffusion.prompts import input_ids
from booth_service.plan import Plan
from booth_service.training import speed
from booth_service.training.batches import Batch, Batches
from booth_service.training.cache import CacheKey, build_cache
from booth_service.training.engine import Ema, Engine
from booth_service.training.plain import PlainEngine
from booth_service.training.report import Report, Tally
from booth_service.training.schedule import learning_rates


@dataclass(frozen=True)
class Task:
    """What one rank trains. Pictures are decoded when they are encoded; `known` moments are not made again."""

    params: Params
    plan: Plan
    components: Components
    photos: Sequence[Picture]
    class_images: Sequence[Picture]
    known: dict[CacheKey, Tensor] | None = None


class Desk(Protocol):
    """What the loop tells and asks outside. Rank 0's `say`, `wants_stop` and `has_enough` count; every rank calls the
    others."""

    def say(self, progress: Progress, note: str | None = None) -> None:
        """Where the run is."""
        ...

    def wants_stop(self) -> bool:
        """True where the owner wants the run to end."""
        ...

    def has_enough(self) -> bool:
        """True where no further step will be used: the run ends here, as it is."""
        ...

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        """Load the last checkpoint, if there is one; returns its step."""
        ...

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        """Store a checkpoint."""
        ...

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        """Draw and store the sample pictures."""
        ...


@dataclass(frozen=True)
class Trained:
    """The end of a run: the engine, and the average of its weights where one was asked for."""

    engine: Engine
    ema: Ema | None


def train(task: Task, desk: Desk) -> Trained:
    """Train for params.steps optimizer steps, with checkpoints and samples on the way, or fewer where the desk has
    enough. All ranks call it.

    Raises NotFinite at a loss or gradient that is not finite (that step changed nothing), AttemptEnded when the owner
    wants it to stop; on all ranks alike.
    """
    params, plan, components = task.params, task.plan, task.components
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device, bf16 = _device(plan), _computes_in_bf16(params, plan)
    if not plan.use_gpu:
        torch.set_num_threads(1)  # ranks share the cores; more threads only wait for each other

    # ---- pictures, model, engine
    def say_encoded(done: int, total: int) -> None:
        desk.say(Progress(phase="encoding pictures", step=min(done, total), total_steps=total))

    cache = build_cache(params, task.photos, task.class_images, components, device, say_encoded, task.known)
    denoiser = trained_module(components, params)
    if plan.activation_checkpointing:
        denoiser.enable_activation_checkpointing()
    if not cache.is_cached:
        components.vae.to(device)
    batches = Batches(
        params,
        cache,
        num_train_timesteps=int(components.noise_scheduler.config.num_train_timesteps),
        latent_channels=int(components.vae.config.latent_channels),
        rank=rank,
        ranks=ranks,
        micro_batch_size=plan.micro_batch_size,
    )
    prompts = prompt_tables(denoiser, components, batches.prompts, device)
    engine = make_engine(denoiser, params, plan, bf16, device)
    ema = Ema(engine, params.ema_decay) if params.ema_decay else None
    num_groups = 2 if params.train_text_encoder else 1  # an inverted token's rows are the one group there is

    # ---- loop state
    step = first_step = desk.resume(engine, ema)
    starting = Progress(phase=TRAINING_PHASE, step=step, total_steps=params.steps)
    desk.say(starting, note=f"training: {plan.why}" + (f", from step {step}" if step else ""))
    report = Report(params, ranks, batches.all_rows, first_step=step)
    report.matrix_rate = speed.matrix_rate(device, torch.bfloat16 if bf16 else torch.float32)
    unread = None
    has_fp32_moments = params.optimizer == "adamw"  # others cannot be checkpointed in fragments: such a run starts anew
    kept = kept_steps(params)

    for micro_batches in batches.from_step(step, device):
        # ---- once in a while, with every step so far known to be good
        is_due = step % params.checkpoint_interval_steps == 0 or step in kept
        is_checkpoint = has_fp32_moments and step > first_step and is_due
        is_sample = bool(params.sample_interval_steps) and step % params.sample_interval_steps == 0
        if unread and (is_checkpoint or is_sample):
            desk.say(report.read(*unread))
            unread = None
        if is_checkpoint:
            desk.checkpoint(engine, ema, step)
        if is_sample:
            with engine.parts_callable():
                desk.draw_samples(components, device, step)

        # ---- one step; the host waits for nothing in it
        tally = Tally(device, rank, ranks, batches.num_rows)
        rates = learning_rates(params, step)
        for batch in micro_batches:
            counting = speed.FlopCount() if step == first_step else nullcontext()
            with counting:
                losses, loss = forward(engine, batch, components, prompts, params.snr_gamma)
                engine.backward(loss)
            report.flops_per_step += getattr(counting, "total", 0)
            tally.add(batch, losses, loss)
        result = engine.step(rates[:num_groups])
        if ema:
            ema.update()
        figures = tally.close(desk.wants_stop(), desk.has_enough(), speed.peak_memory_bytes(device), result)

        # ---- the step before has ended by now: look at it
        if unread:
            desk.say(report.read(*unread))
        unread = (step, figures, rates)
        step += 1
        if report.has_enough:
            break

    if unread:
        desk.say(report.read(*unread))
    if has_fp32_moments and step > first_step and step in kept:
        desk.checkpoint(engine, ema, step)
    if params.sample_interval_steps:
        with engine.parts_callable():
            desk.draw_samples(components, device, step)
    return Trained(engine, ema)


def restored(task: Task, desk: Desk) -> Trained:
    """The run as the desk's checkpoint has it, without a further step; all ranks call it. No picture is looked at."""
    params, plan = task.params, task.plan
    denoiser = trained_module(task.components, params)
    engine = make_engine(denoiser, params, plan, _computes_in_bf16(params, plan), _device(plan))
    ema = Ema(engine, params.ema_decay) if params.ema_decay else None
    step = desk.resume(engine, ema)
    desk.say(Progress(phase="restored", step=step, total_steps=params.steps), note=f"restored step {step}")
    return Trained(engine, ema)


def kept_steps(params: Params) -> set[int]:
    """Steps whose weights are kept beside the interval's: those that are scored, and the end that may be published.

    With the end of a run stored, an attempt that is lost while it scores does not train again.
    """
    return {*params.scoring.steps, params.steps} if params.scoring else set()


def _device(plan: Plan) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if plan.use_gpu else torch.device("cpu")


def _computes_in_bf16(params: Params, plan: Plan) -> bool:
    return params.precision == "bf16" or (params.precision == "auto" and plan.use_gpu)


def trained_module(components: Components, params: Params) -> denoisers.TextConditionedDenoiser:
    """The denoiser around the components' own modules, of which what the job's method trains has gradients."""
    if params.method == "textual_inversion":
        return placeholder.inverted(components, params.token, params.initializer_token or params.class_noun)
    return denoisers.denoiser(components, params.train_text_encoder)


@dataclass(frozen=True)
class PromptTables:
    """All P prompts of a job: token ids (P, L_e) for each encoder, or embeddings where the encoders are frozen."""

    input_ids: tuple[Tensor, ...] | None
    embeds: denoisers.TextEmbeds | None

    def of(self, prompts: Tensor) -> dict[str, Any]:
        """The denoiser's keyword for rows whose prompts have these numbers, (R,)."""
        if self.embeds is None:
            assert self.input_ids is not None
            return {"input_ids": tuple(ids[prompts] for ids in self.input_ids)}
        hidden, pooled = self.embeds
        return {"embeds": (hidden[prompts], None if pooled is None else pooled[prompts])}


@torch.no_grad()
def prompt_tables(
    denoiser: denoisers.TextConditionedDenoiser, components: Components, prompts: list[str], device: torch.device
) -> PromptTables:
    """Frozen encoders run here once, in fp32, and never again in the job."""
    ids = tuple(table.to(device) for table in input_ids(components.tokenizers, prompts))
    if denoiser.train_text_encoder:
        return PromptTables(ids, None)
    for text_encoder in components.text_encoders:
        text_encoder.to(device)
    return PromptTables(None, denoiser.encode(ids))


def forward(
    engine: Engine, batch: Batch, components: Components, prompts: PromptTables, snr_gamma: float
) -> tuple[Tensor, Tensor]:
    """Row losses (R,) before the rows' weights, and this micro-batch's share of the step's loss."""
    scheduler = components.noise_scheduler
    moments = batch.moments
    if moments is None:
        assert batch.pixels is not None
        moments = encode_pixels(components.vae, batch.pixels)
    latents = sample_latents(moments, batch.posterior_noise, components.vae.config.scaling_factor)
    noisy_latents = scheduler.add_noise(latents, batch.noise, batch.timesteps)
    model_pred = engine(noisy_latents, batch.timesteps, time_ids=batch.time_ids, **prompts.of(batch.prompts))
    losses = row_losses(model_pred, target(scheduler, latents, batch.noise, batch.timesteps), batch.masks)
    if snr_gamma:
        losses = losses * min_snr_weights(scheduler, batch.timesteps, snr_gamma)
    return losses, (losses * batch.weights).sum()


def make_engine(
    module: denoisers.TextConditionedDenoiser, params: Params, plan: Plan, bf16: bool, device: torch.device
) -> Engine:
    """DeepSpeed's engine, or the plain one at stage 0 on one rank; the module is on the device afterwards."""
    groups = module.parameter_groups(params.learning_rate, params.text_encoder_learning_rate)
    if plan.ranks == 1 and plan.zero_stage == 0:
        if bf16 and params.method == "textual_inversion":
            placeholder.lower_frozen(module, torch.bfloat16)
        return PlainEngine(
            module.to(device),
            groups,
            max_grad_norm=params.max_grad_norm,
            weight_decay=params.weight_decay,
            bf16=bf16,
            eight_bit=params.optimizer == "adamw_8bit",
        )
    from booth_service.training.zero import ZeroEngine  # one rank does without DeepSpeed, there or not

    return ZeroEngine(
        module,
        groups,
        zero_stage=plan.zero_stage,
        micro_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        max_grad_norm=params.max_grad_norm,
        weight_decay=params.weight_decay,
        bf16=bf16,
        bucket_elements=plan.bucket_elements,
        offload_optimizer=plan.offload_optimizer,
    )
