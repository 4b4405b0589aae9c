"""States of jobs and of runs, and why one failed: one enum that decides status, retry and wording everywhere."""

from enum import StrEnum


class JobState(StrEnum):
    """queued -> preparing -> training -> publishing -> evaluating -> succeeded, or one of the other final states."""

    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    PUBLISHING = "publishing"
    EVALUATING = "evaluating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


class RunState(StrEnum):
    """queued -> running -> succeeded, or one of the other final states; a running one whose attempt ends is queued."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class Desired(StrEnum):
    """What the owner wants of a job; the driver reads it in the reply to every beat.

    "finish" is said in such replies alone: the job goes on, and its training has done enough steps.
    """

    RUN = "run"
    CANCEL = "cancel"
    FINISH = "finish"


class FailureReason(StrEnum):
    """Why an attempt ended without a model."""

    BAD_PHOTOS = "bad_photos"
    DOES_NOT_FIT = "does_not_fit"
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_MODEL = "bad_model"
    STORAGE = "storage"
    NO_FIRST_STEP = "no_first_step"
    STALLED = "stalled"
    WORKER_DIED = "worker_died"
    CLUSTER_LOST = "cluster_lost"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    MODEL_DELETED = "model_deleted"
    CANNOT_DRAW = "cannot_draw"
    CANNOT_SCORE = "cannot_score"
    INTERNAL = "internal"

    @property
    def is_retryable(self) -> bool:
        """True where another attempt may succeed with nothing changed by the user."""
        return self in _RETRYABLE

    @property
    def message(self) -> str:
        """What happened, in a sentence for the user."""
        return _WORDS[self][0]

    @property
    def remedy(self) -> str:
        """What the user can do about it."""
        return _WORDS[self][1]


_RETRYABLE = frozenset(
    {
        FailureReason.STORAGE,
        FailureReason.STALLED,
        FailureReason.WORKER_DIED,
        FailureReason.CLUSTER_LOST,
        FailureReason.INTERNAL,
    }
)

_WORDS: dict[FailureReason, tuple[str, str]] = {
    FailureReason.BAD_PHOTOS: ("The photos cannot be used.", "Submit again with other photos."),
    FailureReason.DOES_NOT_FIT: (
        "The job does not fit the cluster's devices.",
        "Lower resolution or train_batch_size, freeze the text encoder, or add devices.",
    ),
    FailureReason.NOT_FINITE: (
        "The loss stopped being a finite number.",
        "Lower learning_rate; the base recipe's value is a safe start.",
    ),
    FailureReason.OUT_OF_MEMORY: (
        "A training process ran out of memory.",
        "Lower resolution or train_batch_size, or use more devices.",
    ),
    FailureReason.BAD_MODEL: (
        "The trained weights failed verification and were not published.",
        "Submit again with a lower learning rate; report it if it happens twice.",
    ),
    FailureReason.STORAGE: ("The object store did not answer.", "Check the S3 endpoint; the job is tried again."),
    FailureReason.NO_FIRST_STEP: (
        "Training did not reach its first step in time, usually because its devices were never free.",
        "Look at what else holds CPUs or GPUs on the cluster, then submit again.",
    ),
    FailureReason.STALLED: ("The job made no progress for too long and was stopped.", "It is tried again by itself."),
    FailureReason.WORKER_DIED: ("A training process died.", "It is tried again by itself; see the job's logs."),
    FailureReason.CLUSTER_LOST: ("The Ray cluster that ran the job is gone.", "It is tried again by itself."),
    FailureReason.SUPERSEDED: ("A newer attempt of this job took over.", "Nothing to do."),
    FailureReason.CANCELLED: ("The job was cancelled.", "Submit again to start over."),
    FailureReason.MODEL_DELETED: ("The model was deleted meanwhile.", "What was drawn until then stays."),
    FailureReason.CANNOT_DRAW: ("The model cannot draw what was asked.", "Change what the detail names."),
    FailureReason.CANNOT_SCORE: ("The pictures cannot be scored.", "Do what the detail says, then ask again."),
    FailureReason.INTERNAL: ("An unexpected error ended the attempt.", "See the job's logs; report the job id."),
}
