"""One rank of an attempt: pictures and checkpoints in the object store, progress to the control plane, export."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from booth.contract.attempts import Brief, InstancePhoto, SampleStrip, StoredFile
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service.data.dataset import Picture
from booth_service.diffusion.components import Components, load_components
from booth_service.errors import ObjectMissing
from booth_service.plan import Plan
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256, materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training import checkpoint
from booth_service.training.cache import Cache, CacheKey
from booth_service.training.engine import Ema, Engine
from booth_service.training.final_weights import FinalWeights
from booth_service.training.samples import draw_samples
from booth_service.training.worker import Task, train

MB = 10**6


@dataclass(frozen=True)
class ClassSet:
    """The class images of one subject: keys in order, and where their posterior moments are, or will be, kept."""

    keys: list[str]
    moments_key: str


@dataclass(frozen=True)
class WorkerConfig:
    """All that a rank gets. `pulse` opens the line to the control plane (rank 0 alone uses it); `export` stores the
    trained weights: all ranks call it at the end, with what is to be told of bytes stored and bytes in all."""

    brief: Brief
    plan: Plan
    store: ObjectStore
    scratch_dir: str | None
    class_sets: list[ClassSet]
    pulse: Callable[[JobState, Progress], AbstractContextManager[Any]]
    export: Callable[[FinalWeights, Callable[[int, int], None]], list[StoredFile]]


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
    photos = [photo_picture(c, photo) for photo in c.brief.photos]
    task = Task(c.brief.params, c.plan, components, photos, class_pictures(c), desk.known_moments())
    files = c.export(FinalWeights(train(task, desk)), desk.published)
    return files if desk.pulse else None


def photo_picture(c: WorkerConfig, photo: InstancePhoto) -> Picture:
    """A stored photo as the loop takes it."""
    image = _open(c.store.get(photo.key))
    prompt = photo.caption or c.brief.params.subjects[photo.subject].instance_prompt
    load_mask = None if photo.mask is None else partial(_load, c.store, photo.mask.key, "L")
    return Picture(partial(_load, c.store, photo.key), (image.height, image.width), prompt, photo.subject, load_mask)


def class_pictures(c: WorkerConfig) -> list[Picture]:
    """The class images of all subjects, in order. They were drawn at the job's resolution."""
    params = c.brief.params
    size = (params.resolution, params.resolution)
    return [
        Picture(partial(_load, c.store, key), size, params.subjects[number].class_prompt, number)
        for number, class_set in enumerate(c.class_sets)
        for key in class_set.keys
    ]


def run_sha256(brief: Brief, class_sets: list[ClassSet]) -> str:
    """The identity of a run: equal for attempts that a checkpoint may go between, and for no others."""
    return checkpoint.identity(
        brief.params,
        base=content_sha256(brief.base_files),
        photos=[photo.model_dump(mode="json") for photo in brief.photos],
        class_images=[class_set.keys for class_set in class_sets],
    )


class AttemptDesk:
    """Implements `Desk` for an attempt. `pulse` is None on all ranks but the first."""

    def __init__(self, c: WorkerConfig, pulse: Any) -> None:
        self.c, self.pulse = c, pulse
        self.progress = Progress()
        self.run_sha256 = run_sha256(c.brief, c.class_sets)
        self._known: set[str] = set()

    def say(self, progress: Progress, note: str | None = None) -> None:
        self.progress = progress
        if self.pulse:
            self.pulse.say(progress, note=note)

    def published(self, stored_bytes: int, total_bytes: int) -> None:
        """So much of the trained weights is in the object store, in MB as `Progress.step` has it."""
        self.progress = self.progress.model_copy(
            update={
                "phase": "publishing",
                "step": stored_bytes // MB,
                "total_steps": max(1, total_bytes // MB),
                "eta_s": None,
            }
        )
        if self.pulse:
            self.pulse.say(self.progress, state=JobState.PUBLISHING)

    def wants_stop(self) -> bool:
        return bool(self.pulse and self.pulse.desired != "run")

    def known_moments(self) -> dict[CacheKey, Tensor]:
        """Moments of class images that an earlier job stored."""
        known: dict[CacheKey, Tensor] = {}
        for moments_key, wanted in self._class_moments():
            try:
                moments = load(self.c.store.get(moments_key))["moments"]
            except ObjectMissing:
                continue
            self._known.add(moments_key)
            known |= dict(zip(wanted, moments, strict=True))
        return known

    def encoded(self, cache: Cache) -> None:
        for moments_key, wanted in self._class_moments() if self.pulse else []:
            if moments_key not in self._known and all(key in cache.moments for key in wanted):
                body = save({"moments": torch.stack([cache.moments[key] for key in wanted])})
                self.c.store.put_once(moments_key, body, "application/octet-stream")

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

    def _class_moments(self) -> Iterator[tuple[str, list[CacheKey]]]:
        """Where each set's moments are kept, and which of the cache they are: upright and square, in order."""
        square = (self.c.brief.params.resolution,) * 2
        first = 0
        for class_set in self.c.class_sets:
            numbers = range(first, first := first + len(class_set.keys))
            yield class_set.moments_key, [(True, number, False, square) for number in numbers]

    def _store_sample(self, step: int, number: int, image: Image.Image) -> StoredFile:
        brief = self.c.brief
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        body = buffer.getvalue()
        key = keys.sample_file(brief.tenant_id, brief.job_id, brief.attempt, step, f"{number:02d}.png")
        self.c.store.put(key, body, "image/png")
        path = keys.sample_path(step, f"{number:02d}.png")
        return StoredFile(path=path, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))  # the header alone; pixels are decoded when they are used


def _load(store: ObjectStore, key: str, mode: str = "RGB") -> Image.Image:
    return _open(store.get(key)).convert(mode)
