"""One rank of an attempt: pictures and checkpoints in the object store, progress to the control plane, export."""

import hashlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from booth.contract.attempts import Brief, SampleStrip, StoredFile
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service.diffusion.components import Components, load_components
from booth_service.plan import Plan
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256, materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training import checkpoint
from booth_service.training.engine import Ema, Engine, gather
from booth_service.training.samples import draw_samples
from booth_service.training.stored_pictures import ClassSet, class_pictures, known_moments, photo_picture
from booth_service.training.worker import Task, Trained, train

Weights = dict[str, dict[str, Tensor]]  # component folder -> tensor name -> whole tensor on the CPU


@dataclass(frozen=True)
class WorkerConfig:
    """All that a rank gets. `pulse` opens the line to the control plane (rank 0 alone uses it); `export` stores the
    trained weights and is called by rank 0 at the end."""

    brief: Brief
    plan: Plan
    store: ObjectStore
    scratch_dir: str | None
    class_sets: list[ClassSet]
    pulse: Callable[[JobState, Progress], AbstractContextManager[Any]]
    export: Callable[[Weights], list[StoredFile]]
    export_dtype: torch.dtype = torch.float16


def train_loop_per_worker(config: dict[str, Any]) -> list[StoredFile] | None:
    """Train one rank of the attempt from its brief; rank 0 exports and returns the files.

    Raises NotFinite, AttemptEnded, StorageError, CheckpointMismatch, BaseModelError.
    """
    c: WorkerConfig = config["worker"]
    progress = Progress(phase="loading the base model", total_steps=c.brief.params.steps)
    if dist.get_rank() > 0:
        _run(c, AttemptDesk(c, None))
        return None
    with c.pulse(JobState.TRAINING, progress) as pulse:
        return _run(c, AttemptDesk(c, pulse))


def _run(c: WorkerConfig, desk: "AttemptDesk") -> list[StoredFile] | None:
    components = load_components(materialize(c.store, c.brief.base_files, c.scratch_dir))
    photos = [photo_picture(c.store, c.brief.params, photo) for photo in c.brief.photos]
    params = c.brief.params
    class_images = class_pictures(c.store, params, c.class_sets)
    known = known_moments(c.store, params, c.class_sets)
    task = Task(params, c.plan, components, photos, class_images, known)
    trained = train(task, desk)
    weights = whole_weights(trained, c.export_dtype)
    files = None
    if desk.pulse:
        publishing = desk.progress.model_copy(update={"phase": "publishing", "eta_s": None})
        desk.pulse.say(publishing, state=JobState.PUBLISHING)
        files = c.export(weights)
    dist.barrier()
    return files


def whole_weights(trained: Trained, dtype: torch.dtype) -> Weights:
    """All trained tensors, the moving average where there is one, on rank 0 (others get parts: all must call it)."""
    flats = trained.ema.flats if trained.ema else trained.engine.flats("fp32")
    weights: Weights = {}
    for name, tensor in gather(trained.engine, flats, dtype):
        component, own_name = name.split(".", 1)
        if dist.get_rank() == 0:
            weights.setdefault(component, {})[own_name] = tensor
    return weights


def run_sha256(brief: Brief, class_sets: list[ClassSet]) -> str:
    """The identity of a run: equal for attempts that a checkpoint may go between, and for no others."""
    return checkpoint.identity(
        brief.params,
        base=content_sha256(brief.base_files),
        photos=[photo.model_dump(mode="json") for photo in brief.photos],
        class_images=[f"{class_set.address} {len(class_set.pictures)}" for class_set in class_sets],
    )


class AttemptDesk:
    """Implements `Desk` for an attempt. `pulse` is None on all ranks but the first."""

    def __init__(self, c: WorkerConfig, pulse: Any) -> None:
        self.c, self.pulse = c, pulse
        self.progress = Progress()
        self.run_sha256 = run_sha256(c.brief, c.class_sets)

    def say(self, progress: Progress, note: str | None = None) -> None:
        self.progress = progress
        if self.pulse:
            self.pulse.say(progress, note=note)

    def wants_stop(self) -> bool:
        return bool(self.pulse and self.pulse.desired != "run")

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        key = self.c.brief.resume_key
        return checkpoint.read(engine, ema, key, self.run_sha256, self.c.store.get) if key else 0

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        brief = self.c.brief

        def put(name: str, body: bytes) -> str:
            key = keys.checkpoint_file(brief.tenant_id, brief.job_id, brief.attempt, step, name)
            self.c.store.put(key, body)
            return key

        key = checkpoint.write(engine, ema, step, brief.fence, self.run_sha256, put)
        if self.pulse:
            self.pulse.say(self.progress, checkpoint_key=key)

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        brief = self.c.brief
        prompts = brief.params.sample_prompts
        # Under stage 3 every forward is a collective, so all ranks draw all; else they share them out.
        ranks = 1 if self.c.plan.zero_stage == 3 else dist.get_world_size()
        mine = list(range(dist.get_rank() % ranks, len(prompts), ranks))
        images = (
            draw_samples(
                components,
                [prompts[k] for k in mine],
                [brief.params.seed + k for k in mine],
                guidance_scale=brief.recipe.guidance_scale,
                num_inference_steps=brief.recipe.num_inference_steps,
                resolution=brief.params.resolution,
                device=device,
            )
            if mine
            else []
        )
        stored = {k: self._store_sample(step, k, image) for k, image in zip(mine, images, strict=True)}
        shares: list[dict[int, StoredFile]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, stored)
        files = {k: file for share in shares for k, file in share.items()}
        if self.pulse:
            order = range(len(prompts))
            seeds = [brief.params.seed + k for k in order]
            strip = SampleStrip(step=step, files=[files[k] for k in order], seeds=seeds)
            self.pulse.say(self.progress, samples=strip)

    def _store_sample(self, step: int, number: int, image: Image.Image) -> StoredFile:
        brief = self.c.brief
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        body = buffer.getvalue()
        key = keys.sample_file(brief.tenant_id, brief.job_id, brief.attempt, step, f"{number:02d}.png")
        self.c.store.put(key, body, "image/png")
        path = keys.sample_path(step, f"{number:02d}.png")
        return StoredFile(path=path, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
