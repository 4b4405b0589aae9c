"""An arm: the torch loop with Booth's mathematics and nothing round it, on plain torch or on DeepSpeed's engine.

Batches are made before the clock runs; there is no progress, tally, finite flag, thread or schedule. DeepSpeed's
engine is the very one that Booth's seam builds, so that both arms configure it alike.

python tests/benchmarks/bare_loop.py WORKLOAD BASE ENGINE, as a duel starts it; ENGINE is torch, or a ZeRO stage.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from turns import Turn
from workload import Workload

from booth.contract.jobs import Params
from booth_service.diffusion.components import Components, load_components
from booth_service.diffusion.denoiser import TextConditionedDenoiser, denoiser
from booth_service.diffusion.prompts import input_ids
from booth_service.plan_memory import BUCKET_ELEMENTS
from booth_service.settings import torchrun_place
from booth_service.training.batches import Batch, Batches
from booth_service.training.cache import build_cache

Update = Callable[[Tensor], None]  # loss -> the weights have moved


def run(workload: Workload, engine: str) -> None:
    """Train on this process group."""
    torch.set_num_threads(1)
    params, components = workload.params, load_components(workload.base)
    batches = every_batch(workload, components)
    module = denoiser(components, params.train_text_encoder)
    prompts = sorted({params.instance_prompt, params.class_prompt})
    (ids,) = input_ids(components.tokenizers, prompts)
    model, update = torch_step(module, params) if engine == "torch" else deepspeed_step(module, params, int(engine))
    scheduler, scaling_factor = components.noise_scheduler, components.vae.config.scaling_factor
    losses = []
    turn = Turn.from_environment()
    turn.begin()
    for batch in batches:
        assert batch.moments is not None
        latents = (batch.moments[:, 0] + batch.moments[:, 1] * batch.posterior_noise) * scaling_factor
        noisy_latents = scheduler.add_noise(latents, batch.noise, batch.timesteps)
        model_pred = model(noisy_latents, batch.timesteps, input_ids=(ids[batch.prompts],))
        target = batch.noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, batch.noise, batch.timesteps)
        errors = F.mse_loss(model_pred, target, reduction="none").flatten(1).mean(1)
        loss = (errors * batch.weights).sum()
        update(loss)
        losses.append(loss.detach())
        turn.step_done()
    whole = torch.stack(losses)
    dist.all_reduce(whole)
    turn.end(whole.tolist())


def every_batch(workload: Workload, components: Components) -> list[Batch]:
    """This rank's one micro-batch of every step."""
    params, ranks = workload.params, dist.get_world_size()
    device = torch.device("cpu")
    cache = build_cache(params, workload.photos(), workload.class_images(), components, device, lambda *_: None)
    batches = Batches(
        params,
        cache,
        num_train_timesteps=int(components.noise_scheduler.config.num_train_timesteps),
        latent_channels=int(components.vae.config.latent_channels),
        rank=dist.get_rank(),
        ranks=ranks,
        micro_batch_size=2 * params.train_batch_size // ranks,
    )
    return [batches.of_step(step)[0] for step in range(params.steps)]


def torch_step(module: TextConditionedDenoiser, params: Params, **how: Any) -> tuple[Any, Update]:
    """AdamW, fused unless `how` says otherwise, and torch's own clipping."""
    groups = module.parameter_groups(params.learning_rate, params.text_encoder_learning_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay, **({"fused": True} | how))
    parameters = [parameter for group in groups for parameter in group["params"]]

    def update(loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, params.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return module, update


def deepspeed_step(
    module: TextConditionedDenoiser, params: Params, zero_stage: int, bf16: bool = False
) -> tuple[Any, Update]:
    """DeepSpeed's engine: forward, backward, step."""
    from booth_service.training.zero import ZeroEngine

    ranks = dist.get_world_size()
    seam = ZeroEngine(
        module,
        module.parameter_groups(params.learning_rate, params.text_encoder_learning_rate),
        zero_stage=zero_stage,
        micro_batch_size=2 * params.train_batch_size // ranks,
        gradient_accumulation_steps=1,
        max_grad_norm=params.max_grad_norm,
        weight_decay=params.weight_decay,
        bf16=bf16,
        bucket_elements=BUCKET_ELEMENTS[0],
    )
    engine = seam._engine

    def update(loss: Tensor) -> None:
        engine.backward(loss * ranks)
        engine.step()

    return engine, update


def main(folder: str, base: str, engine: str) -> int:
    rank, ranks, _ = torchrun_place()
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    run(Workload(Path(folder), Path(base)), engine)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
