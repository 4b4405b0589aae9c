"""The tables. SQL is the only truth: what is not here did not happen.

tenants 1-n api_keys, uploads, idempotency, jobs, models, runs
jobs    1-n attempts, events, samples, scores, class_set_leases; 1-1 models
runs    1-n run_attempts; a group 1-n jobs
base_models 1-n jobs (a replaced base model keeps its row, so that its models keep their base)
"""

import os
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from booth.contract.bulk import DRAWING_PHASE
from booth.contract.groups import CELLS_PHASE
from booth.contract.states import Desired, FailureReason, JobState, RunState

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """An unguessable id: 48 bits of milliseconds, then 80 random bits, so that ids sort by creation."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return f"{prefix}-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets the zone; this puts it back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "moments carry their zone"
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class AttemptState(StrEnum):
    """active: the driver works. closing: the outcome is decided, its Ray job may still run. closed: nothing runs."""

    ACTIVE = "active"
    CLOSING = "closing"
    CLOSED = "closed"


def _words(kind: type[StrEnum]) -> Enum:
    """A column of an enum's values, as plain text in the database."""
    return Enum(kind, native_enum=False, length=20, values_callable=lambda members: [each.value for each in members])


class ServingState(StrEnum):
    """serving: replicas may hold devices. draining: they were told to leave. paused: they have left, a job runs."""

    SERVING = "serving"
    DRAINING = "draining"
    PAUSED = "paused"


class Table(DeclarativeBase):
    """The metadata that the migrations must agree with."""

    type_annotation_map = {
        str: Text(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class Tenant(Table):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class ApiKey(Table):
    """`id` is the public part of the key; of the secret only its SHA-256 is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    secret_sha256: Mapped[str]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class BaseModel(Table):
    """`files` are StoredFile records. At most one row of a name is current (`replaced_at` is null).

    `references` are StoredFile records by format of numbers: what publishing the base untrained would give. `source` is
    where the files came from; of a hub, `revision` is the commit. `adapter_files` are those of its IP-Adapter, if it
    has one: no part of what the base model is.
    """

    __tablename__ = "base_models"
    __table_args__ = (
        Index(
            "ix_base_models_current",
            "name",
            unique=True,
            sqlite_where=text("replaced_at IS NULL"),
            postgresql_where=text("replaced_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    family: Mapped[str]
    is_default: Mapped[bool]
    recipe: Mapped[dict[str, Any]]
    files: Mapped[list[Any]]
    references: Mapped[dict[str, Any]] = mapped_column("reference_files", default=dict, server_default="{}")
    adapter_files: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    source: Mapped[str]
    revision: Mapped[str | None]
    created_at: Mapped[datetime]
    replaced_at: Mapped[datetime | None]


class Upload(Table):
    """A photo or mask on its way in: its raw object, and a clean one that no job names, go when the row expires."""

    __tablename__ = "uploads"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Idempotency(Table):
    """The answer to a submission, so that its repetition makes no second job."""

    __tablename__ = "idempotency"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(index=True)


class Job(Table):
    """`fence` only grows: whoever holds an older one has no say. `last_event` is the highest event number.

    A job with a `group_id` is a cell of that group: it has no Ray job of its own, the group's claims and runs it.
    `cell` are its labels there (contract.groups.CellLabels).
    """

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_tenant_id_id", "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    params: Mapped[dict[str, Any]]
    warnings: Mapped[list[Any]]
    photos: Mapped[list[Any]]
    class_photos: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    state: Mapped[JobState] = mapped_column(_words(JobState), index=True)
    status_detail: Mapped[str]
    desired: Mapped[Desired] = mapped_column(_words(Desired), default=Desired.RUN)
    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    last_event: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any]]
    checkpoint_key: Mapped[str | None]
    selected_step: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
    model_id: Mapped[str | None]
    group_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    cell: Mapped[dict[str, Any] | None]
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Attempt(Table):
    """One Ray job. `stop_reason` is why we ended it; `reason` is what it came to (null: it published its model)."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int]
    ray_submission_id: Mapped[str]
    state: Mapped[AttemptState] = mapped_column(_words(AttemptState), index=True)
    stop_reason: Mapped[FailureReason | None] = mapped_column(_words(FailureReason))
    reason: Mapped[FailureReason | None] = mapped_column(_words(FailureReason))
    detail: Mapped[str] = mapped_column(default="")
    note: Mapped[str | None]
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    last_beat_at: Mapped[datetime | None]
    last_progress_at: Mapped[datetime | None]
    last_progress_event_at: Mapped[datetime | None]
    training_at: Mapped[datetime | None]
    training_from_step: Mapped[int | None]
    first_step_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]


class JobEvent(Table):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str]
    message: Mapped[str]
    status: Mapped[JobState] = mapped_column(_words(JobState))
    progress: Mapped[dict[str, Any] | None]


class Sample(Table):
    """Sample pictures of one step, as the newest attempt that came there drew them. `files` are StoredFile records."""

    __tablename__ = "samples"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    files: Mapped[list[Any]]
    seeds: Mapped[list[Any]]


class StepScore(Table):
    """What the weights of one step came to, as the newest attempt that scored them found. `score` is a Score record
    without its pictures; those lie in the object store, in the record at `key`."""

    __tablename__ = "scores"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    score: Mapped[dict[str, Any]]
    key: Mapped[str]
    sha256: Mapped[str]


class EncoderSuite(Table):
    """The encoders that scores are measured with, by name: `files` are StoredFile records of a suite folder, `spec`
    what its encoders.json says. At most one row of a name is current (`replaced_at` is null)."""

    __tablename__ = "encoder_suites"
    __table_args__ = (
        Index(
            "ix_encoder_suites_current",
            "name",
            unique=True,
            sqlite_where=text("replaced_at IS NULL"),
            postgresql_where=text("replaced_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    files: Mapped[list[Any]]
    source: Mapped[str]
    created_at: Mapped[datetime]
    replaced_at: Mapped[datetime | None]


class ClassSetLease(Table):
    """Who makes a class-image set, by its tenant (or "shared") and address. Void once the attempt is over."""

    __tablename__ = "class_set_leases"
    __table_args__ = (ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.n"]),)

    class_set: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str]
    attempt: Mapped[int]
    claimed_at: Mapped[datetime]


class Serving(Table):
    """The one row (id "stack") of whether inference holds devices, since when, and which job it made room for."""

    __tablename__ = "serving"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[ServingState] = mapped_column(_words(ServingState))
    job_id: Mapped[str | None]
    since: Mapped[datetime]


class Model(Table):
    """A published model. Deleted: hidden at once; the row stays until its objects are gone."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("job_id"), Index("ix_models_tenant_id_id", "tenant_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    name: Mapped[str]
    params: Mapped[dict[str, Any]]
    manifest_key: Mapped[str]
    manifest_sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None] = mapped_column(index=True)


class Run(Table):
    """Work on the cluster beside jobs: a generation, an evaluation or a group of jobs, told apart by `kind`. All live
    and end alike (`run_lifecycle`). Deleted: as a model is.

    It does not run before `is_stored`: what it works on lies in the object store. `done` of `total` pictures or cells
    are there; `settings` is a record of its kind. `manifest_key` names what it came to. `model_id` is no foreign key:
    the model may be gone.
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_runs_tenant_id_id", "tenant_id", "id"),
    )
    __mapper_args__ = {"polymorphic_on": "kind"}
    program: ClassVar[str]
    counts: ClassVar[str]
    counting_phase: ClassVar[str]

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[str | None] = mapped_column(index=True)
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    idempotency_key: Mapped[str]
    request_sha256: Mapped[str]
    is_stored: Mapped[bool] = mapped_column(default=False)
    settings: Mapped[dict[str, Any]]
    state: Mapped[RunState] = mapped_column(_words(RunState), index=True)
    status_detail: Mapped[str]
    desired: Mapped[Desired] = mapped_column(_words(Desired), default=Desired.RUN)
    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int]
    images_per_second: Mapped[float | None]
    eta_s: Mapped[float | None]
    manifest_key: Mapped[str | None]
    manifest_sha256: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None] = mapped_column(index=True)


class Generation(Run):
    """Many pictures of a model, or (`model_id` is null) of a base model alone, in blocks of `block_size`.

    `settings` are GenerationSettings; its prompts lie in the object store.
    """

    __mapper_args__ = {"polymorphic_identity": "generation"}
    program, counts, counting_phase = "booth_service.bulk", "pictures", DRAWING_PHASE

    prompts_sha256: Mapped[str] = mapped_column(nullable=True)
    prompts: Mapped[int] = mapped_column(nullable=True)
    block_size: Mapped[int] = mapped_column(nullable=True)


class Evaluation(Run):
    """A model scored beside its baselines: `settings` are EvaluationSettings, the manifest is its report as JSON."""

    __mapper_args__ = {"polymorphic_identity": "evaluation"}
    program, counts, counting_phase = "booth_service.evaluate", "pictures", DRAWING_PHASE


class Group(Run):
    """A sweep or benchmark: jobs that name it (`Job.group_id`) and are its cells. `settings` are GroupSettings."""

    __mapper_args__ = {"polymorphic_identity": "group"}
    program, counts, counting_phase = "booth_service.cells", "cells", CELLS_PHASE


class RunAttempt(Table):
    """One Ray job of a run, as `Attempt` is one of a job.

    `phase` and `step` are what it said last; `from_step` of its pictures or cells stood when it began, and more did
    from `first_at` on.
    """

    __tablename__ = "run_attempts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int]
    ray_submission_id: Mapped[str]
    state: Mapped[AttemptState] = mapped_column(_words(AttemptState), index=True)
    stop_reason: Mapped[FailureReason | None] = mapped_column(_words(FailureReason))
    reason: Mapped[FailureReason | None] = mapped_column(_words(FailureReason))
    detail: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    last_beat_at: Mapped[datetime | None]
    last_progress_at: Mapped[datetime | None]
    phase: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    from_step: Mapped[int]
    first_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
