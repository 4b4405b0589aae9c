"""The way of a job that trains nothing: its photo as an IP-Adapter takes it -> publish -> scores. `driver.py` goes it.

The method "ip_adapter" (Ye et al. 2023). What is published is the photo's embeddings, some kilobytes; all other files
of the model are the base model's and its adapter's.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from safetensors.torch import save

from booth.contract.attempts import Brief, Published, StoredFile
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service import actor_pool
from booth_service.beats import Pulse
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.image_prompt import embeds_of_photo
from booth_service.publish.publisher import publish_manifest
from booth_service.score_stage import ScoreDesk, score_run
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

READING_PHASE = "reading the photo"


@dataclass(frozen=True)
class PhotoWork:
    """All that whoever reads the photo needs. Small and picklable; the embeddings go to `key`."""

    photo: StoredFile
    base_files: list[StoredFile]
    adapter_files: list[StoredFile]
    key: str
    store: ObjectStore
    scratch_dir: str | None
    use_gpu: bool


Read = Callable[[PhotoWork], StoredFile]
"""Stores the photo's embeddings and answers their record; `on_a_device` on a cluster."""


def run(scoring: ScoreDesk, read: Read) -> None:
    """Every step of the attempt, in order. Raises ServiceError."""
    brief, line, store = scoring.work.brief, scoring.line, scoring.work.store
    work = work_of(brief, store, scoring.work.scratch_dir, use_gpu=scoring.work.use_gpu)
    reading = Progress(phase=READING_PHASE, total_steps=1)
    with Pulse(line, brief.fence, JobState.PREPARING, reading) as pulse:
        pulse.say(reading)
        embeds = read(work)
        pulse.check()
        pulse.say(Progress(phase="publishing", step=1, total_steps=1), state=JobState.PUBLISHING)
    key, sha256 = publish_manifest(brief, [embeds], store)
    score_run(scoring)
    line.published(Published(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    print(f"published {key}", flush=True)


def work_of(brief: Brief, store: ObjectStore, scratch_dir: str | None, *, use_gpu: bool) -> PhotoWork:
    """What the attempt's one photo is read with, and where its embeddings go."""
    return PhotoWork(
        photo=brief.trained_photos[0],
        base_files=brief.base_files,
        adapter_files=brief.adapter_files,
        key=keys.model_file(brief.tenant_id, brief.job_id, brief.attempt, EMBEDS_PATH),
        store=store,
        scratch_dir=scratch_dir,
        use_gpu=use_gpu,
    )


def on_a_device(work: PhotoWork) -> StoredFile:
    """The same by an actor that holds a device, where the base model is loaded; the driver holds none."""
    (stored,) = actor_pool.by_actor_pool(
        reader, [work], resources=actor_pool.one_device(use_gpu=work.use_gpu), most=1, what=READING_PHASE
    )
    return stored


def reader() -> Read:
    """What an actor of a pool does with its task."""
    return read_photo


def read_photo(work: PhotoWork) -> StoredFile:
    """The embeddings of the photo are stored. Raises StorageError, BaseModelError."""
    if not work.use_gpu:
        torch.set_num_threads(1)  # as at the endpoint: more would give other last digits
    device, dtype = ("cuda", torch.float16) if work.use_gpu else ("cpu", torch.float32)
    pipeline = load_pipeline(materialize(work.store, work.base_files, work.scratch_dir), dtype).to(device)
    folder = materialize(work.store, work.adapter_files, work.scratch_dir)
    photo = Image.open(io.BytesIO(work.store.get(work.photo.key, work.photo.sha256)))
    body = save({EMBEDS: embeds_of_photo(pipeline, folder, photo)})
    work.store.put(work.key, body)
    return StoredFile(path=EMBEDS_PATH, key=work.key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
