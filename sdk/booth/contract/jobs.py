"""A job on the wire: what is submitted, what it resolves to, how far it is."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from booth.contract import limits
from booth.contract.base import Record, Request
from booth.contract.states import FailureReason, JobState

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.MAX_TEXT_CHARS)]
TRAINING_PHASE = "training"  # the phase in which `step` counts optimizer steps
Rate = Annotated[float, Field(gt=0, le=1)]


class PhotoRef(Request):
    """One photo by content. `bytes` is its size as uploaded."""

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0, le=limits.MAX_PHOTO_BYTES)]
    filename: Annotated[str, StringConstraints(max_length=255)] = "photo"


class TrainingOptions(Request):
    """The rarely touched settings of a job. None means: as the base model's recipe says."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    lr_warmup_steps: Annotated[int, Field(ge=0, le=limits.MAX_STEPS)] | None = None
    random_flip: bool | None = None
    checkpoint_interval_steps: Annotated[int, Field(ge=1, le=limits.MAX_STEPS)] | None = None


class JobSpec(Request):
    """What a user submits. Every dial that is None takes the base model's recipe."""

    class_noun: Words
    images: Annotated[list[PhotoRef], Field(min_length=1, max_length=limits.MAX_PHOTOS)]
    token: Words | None = None
    base_model: Words | None = None
    steps: Annotated[int, Field(ge=1, le=limits.MAX_STEPS)] | None = None
    learning_rate: Rate | None = None
    text_encoder_learning_rate: Rate | None = None
    prior_loss_weight: Annotated[float, Field(ge=0, le=100)] | None = None
    num_class_images: Annotated[int, Field(ge=0, le=limits.MAX_CLASS_IMAGES)] | None = None
    train_text_encoder: bool | None = None
    resolution: Annotated[int, Field(ge=32, le=limits.MAX_RESOLUTION_PX, multiple_of=8)] | None = None
    train_batch_size: Annotated[int, Field(ge=1, le=limits.MAX_TRAIN_BATCH_SIZE)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    name: Words | None = None
    options: TrainingOptions = TrainingOptions()


class Params(Record):
    """Every value a job runs with, as resolved from spec and recipe, the seed included."""

    base_model: str
    token: str
    class_noun: str
    instance_prompt: str
    class_prompt: str
    steps: int
    learning_rate: float
    text_encoder_learning_rate: float
    prior_loss_weight: float
    num_class_images: int
    train_text_encoder: bool
    resolution: int
    train_batch_size: int
    seed: int
    weight_decay: float
    max_grad_norm: float
    lr_warmup_steps: int
    random_flip: bool
    checkpoint_interval_steps: int


class UploadTarget(Record):
    """Where to PUT one photo; `url` is None where the service already holds these bytes."""

    sha256: str
    url: str | None = None


class PreparedJob(Record):
    """The answer to POST /v1/jobs/prepare: the spec is valid, and these photos are still missing."""

    params: Params
    warnings: list[str] = []
    uploads: list[UploadTarget]


class Progress(Record):
    """How far a job is. Losses are of the last reported step; `eta_s` covers the current phase."""

    phase: str = "queued"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    instance_loss: float | None = None
    prior_loss: float | None = None
    images_per_second: float | None = None
    eta_s: float | None = None


class JobFailure(Record):
    """Why a job failed, and what to do about it."""

    reason: FailureReason
    message: str
    remedy: str
    detail: str = ""


class JobRecord(Record):
    """A job as its owner sees it. `status_detail` is a sentence."""

    id: str
    name: str
    status: JobState
    status_detail: str
    progress: Progress
    params: Params
    warnings: list[str] = []
    error: JobFailure | None = None
    attempt: int = 0
    model_id: str | None = None
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobPage(Record):
    """Jobs, newest first; `next_after` is None on the last page."""

    jobs: list[JobRecord]
    next_after: str | None = None


class Event(Record):
    """One line of a job's history. `seq` grows by one within a job."""

    seq: int
    at: datetime
    kind: str  # state | progress | note | warning
    message: str
    status: JobState
    progress: Progress | None = None


class EventPage(Record):
    """Events after the asked one, and the job as it stands."""

    events: list[Event]
    job: JobRecord


class LogPage(Record):
    """Log text from an offset; `complete` once the attempt has ended and no more will come."""

    text: str
    next_offset: int
    attempt: int
    complete: bool
