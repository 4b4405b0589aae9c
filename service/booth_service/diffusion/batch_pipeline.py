"""A pipeline for one batch over modules that many batches share: whatever becomes of it, nothing stays behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from booth.contract.drawing import SchedulerName
from booth_service.diffusion.schedulers import scheduler_of

IMG2IMG = {
    StableDiffusionPipeline: StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline: StableDiffusionXLImg2ImgPipeline,
}
WITHOUT = {  # what would change pictures unasked, and what warns that it is not there
    StableDiffusionPipeline: {"requires_safety_checker": False},
    StableDiffusionXLPipeline: {"add_watermarker": False},
}

OWN_OPTIONS = ("force_zeros_for_empty_prompt",)  # that folders of a family set


@contextmanager
def pipeline_of_batch(shared: Any, scheduler: SchedulerName, *, img2img: bool) -> Iterator[Any]:
    """A text-to-image or image-to-image pipeline over the very modules of `shared`, with a new scheduler of its own.

    `shared` is not touched: interruption, step counts and solver histories live and die with the yielded pipeline. Of
    the modules, a VAE that was cast for this batch (Stable Diffusion XL's, to fp32) has its dtype back at the end.
    """
    kind = type(shared)
    options = WITHOUT[kind] | {name: shared.config[name] for name in OWN_OPTIONS if name in shared.config}
    # Not `from_pipe`: it casts the modules it is given, to fp32 unless told one dtype for all of them.
    pipeline = (IMG2IMG[kind] if img2img else kind)(**shared.components, **options)
    pipeline.scheduler = scheduler_of(shared.scheduler, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    vae_dtype = shared.vae.dtype
    try:
        yield pipeline
    finally:
        if shared.vae.dtype != vae_dtype:
            shared.vae.to(vae_dtype)
