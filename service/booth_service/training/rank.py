"""One rank of an attempt: pictures and checkpoints in the object store, progress to the control plane, export."""

import hashlib
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from booth.contract.attempts import Brief, SampleStrip, StoredFile
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service.diffusion.components import Components, load_components
from booth_service.plan import Plan
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256, materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training import checkpoint
from booth_service.training.engine import Ema, Engine
from booth_service.training.final_weights import FinalWeights
from booth_service.training.samples import draw_samples
from booth_service.training.stored_pictures import ClassSet, class_pictures, known_moments, photo_picture
from booth_service.training.worker import Task, restored, train

MB = 10**6


@dataclass(frozen=True)
class WorkerConfig:
    """All that a rank gets. `pulse` opens the line to the control plane (rank 0 alone uses it); `export` stores the
    trained weights: all ranks call it at the end, with what is to be told of bytes stored and bytes in all. None: the
    run's checkpoints are all that it leaves. `restore_key` names a checkpoint's manifest: its weights are exported as
    they are, and no step is made."""

    brief: Brief
    plan: Plan
    store: ObjectStore
    scratch_dir: str | None
    class_sets: list[ClassSet]
    pulse: Callable[[JobState, Progress], AbstractContextManager[Any]]
    export: Callable[[FinalWeights, Callable[[int, int], None]], list[StoredFile]] | None
    restore_key: str | None = None


def train_loop_per_worker(config: dict[str, Any]) -> list[StoredFile] | None:
    """Train one rank of the attempt from its brief and export its share; rank 0 returns the files.

    Raises NotFinite, AttemptEnded, StorageError, CheckpointMismatch, BaseModelError, BadWeights.
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
    trained = restored(Task(c.brief.params, c.plan, components, [], []), desk) if c.restore_key else None
    trained = trained or train(_task(c, components), desk)
    files = c.export(FinalWeights(trained), desk.published) if c.export else []
    return files if desk.pulse else None


def _task(c: WorkerConfig, components: Components) -> Task:
    params = c.brief.params
    photos = [photo_picture(c.store, params, photo) for photo in c.brief.trained_photos]
    class_images = class_pictures(c.store, params, c.class_sets)
    known = known_moments(c.store, params, c.class_sets)
    return Task(params, c.plan, components, photos, class_images, known)


def run_sha256(brief: Brief, class_sets: list[ClassSet]) -> str:
    """The identity of a run: equal for attempts that a checkpoint may go between, and for no others."""
    return checkpoint.identity(
        brief.params,
        base=content_sha256(brief.base_files),
        photos=[photo.model_dump(mode="json", exclude={"held_out"}) for photo in brief.trained_photos],
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

    def published(self, stored_bytes: int, total_bytes: int) -> None:
        """So much of the trained weights is in the object store, in MB as `Progress.step` has it."""
        self.progress = self.progress.model_copy(
            update={
                "phase": "publishing",
                "step": math.ceil(stored_bytes / MB),
                "total_steps": math.ceil(total_bytes / MB),
                "eta_s": None,
            }
        )
        if self.pulse:
            self.pulse.say(self.progress, state=JobState.PUBLISHING)

    def wants_stop(self) -> bool:
        return bool(self.pulse and self.pulse.desired not in ("run", "finish"))

    def has_enough(self) -> bool:
        return bool(self.pulse and self.pulse.desired == "finish")

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        key = self.c.restore_key or self.c.brief.resume_key
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
