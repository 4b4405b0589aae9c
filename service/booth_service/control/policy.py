"""What to do next with a job: pure decisions from what SQL holds, what Ray says, and the clock.

An attempt is `active` until its outcome is decided, `closing` while its Ray job may still run, then `closed`. A job's
next attempt starts only when the last one is closed, so that two drivers of one job never run side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from booth.contract.jobs import WAITING_PHASE
from booth.contract.states import Desired, FailureReason, JobState
from booth_service.control.records import Attempt, AttemptState, Job, Run, RunAttempt
from booth_service.settings import Settings

FIRST_RETRY_DELAY_S = 5.0
CLOSING_GRACE_S = 30.0


class RayStatus(StrEnum):
    """Ray's own states, and two of ours: the cluster knows no such job; the cluster does not answer."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"
    UNREACHABLE = "unreachable"

    @property
    def is_gone(self) -> bool:
        """True where the Ray job certainly no longer runs."""
        return self not in (RayStatus.PENDING, RayStatus.RUNNING, RayStatus.UNREACHABLE)


@dataclass(frozen=True)
class Wait:
    """Nothing to do."""


@dataclass(frozen=True)
class Say:
    """Tell the owner why nothing moves."""

    status_detail: str


@dataclass(frozen=True)
class Launch:
    """Submit the attempt's Ray job; a repeat is harmless."""


@dataclass(frozen=True)
class Stop:
    """Ask Ray to end the job. With a reason, the attempt will end for it once the Ray job is gone."""

    reason: FailureReason | None = None
    detail: str = ""


@dataclass(frozen=True)
class End:
    """The attempt is over for this reason; `outcome` says what that means for the job."""

    reason: FailureReason
    detail: str = ""


@dataclass(frozen=True)
class Close:
    """The Ray job is gone: keep its log, free its place."""


@dataclass(frozen=True)
class Claim:
    """Begin the job's next attempt."""


@dataclass(frozen=True)
class Retry:
    """The job waits, then runs again."""

    reason: FailureReason
    delay_s: float


@dataclass(frozen=True)
class Fail:
    """The job is over without a model."""

    reason: FailureReason


@dataclass(frozen=True)
class Cancel:
    """The job is over as its owner asked."""


Decision = Wait | Say | Launch | Stop | End | Close
Waiting = Job | Run
AnyAttempt = Attempt | RunAttempt


def decide(
    job: Job, attempt: Attempt, ray: RayStatus, settings: Settings, now: datetime, watching_since: datetime
) -> Decision:
    """What to do with an attempt that is not closed.

    Silence counts from `watching_since` at the earliest: while this process was away, nobody listened.
    """
    decided = unless_it_works(job.desired, attempt, ray, now)
    return decided or _running(job, attempt, settings, now, watching_since)


def unless_it_works(desired: Desired, attempt: AnyAttempt, ray: RayStatus, now: datetime) -> Decision | None:
    """What to do with an attempt that is not closed, whatever it is for; None where it runs and should."""
    if attempt.state is AttemptState.CLOSING:
        return _closing(attempt, ray, now)
    never_submitted = attempt.submitted_at is None and ray in (RayStatus.UNKNOWN, RayStatus.UNREACHABLE)
    if never_submitted and desired is Desired.CANCEL:
        return End(FailureReason.CANCELLED)  # should the cluster have it after all, its first beat is refused
    if ray is RayStatus.UNREACHABLE:
        return _unreachable(attempt, now)
    if never_submitted:
        return Launch()
    if ray.is_gone:
        return _gone(desired, attempt, ray)
    if attempt.stop_reason is not None:
        return Stop()
    if desired is Desired.CANCEL:
        return Stop(FailureReason.CANCELLED)
    return None


def decide_cell(
    job: Job, attempt: Attempt, ray: RayStatus, settings: Settings, now: datetime, watching_since: datetime
) -> Decision:
    """What to do with an attempt that its group's Ray job runs, and that is not closed.

    A Stop is noted alone: the cell hears of it in the answer to its next beat, or its group's driver ends what does not
    listen. The Ray job is the others' too.
    """
    if attempt.state is AttemptState.CLOSING:
        return Close()  # by its driver's word; the Ray job goes on with other cells
    if ray is RayStatus.UNREACHABLE:
        return _unreachable(attempt, now)
    if ray.is_gone and attempt.stop_reason is None and job.desired is Desired.RUN:
        return End(FailureReason.CLUSTER_LOST, f"the group's Ray job {attempt.ray_submission_id} is {ray.value}")
    if ray.is_gone:
        return End(attempt.stop_reason or FailureReason.CANCELLED)
    if attempt.stop_reason is not None or job.desired is Desired.CANCEL:
        return Wait()
    return _running(job, attempt, settings, now, watching_since)


def decide_queue(
    queued: Sequence[Waiting], running: int, settings: Settings, now: datetime, hold: str = ""
) -> list[tuple[Waiting, Claim | Say]]:
    """What to do with the jobs that wait, oldest first. `running` counts the attempts that are not closed; with `hold`,
    which says why, none may begin now."""
    decisions: list[tuple[Waiting, Claim | Say]] = []
    ahead = running
    for job in queued:
        if job.not_before is not None and job.not_before > now:
            continue
        if ahead < settings.max_running_jobs:
            decisions.append((job, Say(hold) if hold else Claim()))
        else:
            decisions.append((job, Say(f"Waiting for {ahead} job{'s' if ahead > 1 else ''} ahead.")))
        ahead += 1
    return decisions


def outcome(reason: FailureReason, failures: int, settings: Settings) -> Retry | Fail | Cancel:
    """What the end of an attempt means for its job.

    `failures` counts the job's attempts, this one included, that ended alike: with their cluster, or otherwise. A lost
    cluster is not the job's doing, so a healthy job outlives more of those than of its own failures.
    """
    if reason is FailureReason.CANCELLED:
        return Cancel()
    is_lost = reason is FailureReason.CLUSTER_LOST
    if reason.is_retryable and failures < (settings.max_cluster_losses if is_lost else settings.max_attempts):
        return Retry(reason, FIRST_RETRY_DELAY_S if is_lost else FIRST_RETRY_DELAY_S * 3 ** (failures - 1))
    return Fail(reason)


def scores_beside(job: Job, attempt: Attempt) -> bool:
    """Whether checkpoints of the attempt should be scored while it trains: there is one, and the job chooses by them.

    A cell's group holds every device that it can use.
    """
    is_at_work = attempt.state is AttemptState.ACTIVE and job.state is JobState.TRAINING
    has_checkpoint = job.checkpoint_key is not None and attempt.first_step_at is not None
    chooses = job.params.get("select_checkpoint") == "fidelity" and job.selected_step is None
    return is_at_work and has_checkpoint and chooses and job.group_id is None and job.desired is Desired.RUN


def is_last_try(earlier: Sequence[FailureReason | None], settings: Settings) -> bool:
    """Whether one more end like one of the `earlier` attempts' means that the job fails."""
    lost = sum(reason is FailureReason.CLUSTER_LOST for reason in earlier)
    own = len(earlier) - lost
    return (own > 0 and own + 1 >= settings.max_attempts) or (lost > 0 and lost + 1 >= settings.max_cluster_losses)


def _closing(attempt: AnyAttempt, ray: RayStatus, now: datetime) -> Decision:
    if ray.is_gone:
        return Close()
    overdue = attempt.ended_at is not None and now - attempt.ended_at > timedelta(seconds=CLOSING_GRACE_S)
    return Stop() if overdue and ray is not RayStatus.UNREACHABLE else Wait()


def _unreachable(attempt: AnyAttempt, now: datetime) -> Decision:
    """An API error is no evidence that the job died; where its driver beats, it is well."""
    if attempt.last_beat_at is not None and now - attempt.last_beat_at < timedelta(seconds=CLOSING_GRACE_S):
        return Wait()
    return Say("The Ray cluster does not answer; waiting for it to come back.")


def _gone(desired: Desired, attempt: AnyAttempt, ray: RayStatus) -> Decision:
    if attempt.stop_reason is not None:
        return End(attempt.stop_reason)
    if desired is Desired.CANCEL:
        return End(FailureReason.CANCELLED)
    if ray is RayStatus.UNKNOWN:
        return End(FailureReason.CLUSTER_LOST, "the cluster that answers does not know this attempt")
    if ray is RayStatus.SUCCEEDED:
        return End(FailureReason.INTERNAL, "the driver exited without saying how it ended")
    return End(FailureReason.WORKER_DIED, f"the driver's Ray job is {ray.value} and did not say why")


def _running(job: Job, attempt: Attempt, settings: Settings, now: datetime, watching_since: datetime) -> Decision:
    def silent_s(since: datetime | None) -> float:
        return (now - max(since or attempt.created_at, watching_since)).total_seconds()

    begun = attempt.submitted_at or attempt.created_at
    limit = settings.no_progress_limit_s
    if attempt.training_at is not None and attempt.first_step_at is None:
        # Nobody beats while the gang waits for its devices; once it has them, it tells of the pictures it encodes.
        moved = max(attempt.training_at, attempt.last_progress_at or attempt.training_at)
        if silent_s(moved) > settings.first_step_limit_s:
            return Stop(FailureReason.NO_FIRST_STEP, f"no step within {settings.first_step_limit_s:g} s")
        return Wait()
    if silent_s(attempt.last_beat_at or begun) > limit:
        return Stop(FailureReason.STALLED, f"the driver has said nothing for {limit:g} s")
    # One that waits for the class images of another job moves when that one has made them, or is over.
    is_waiting = job.progress.get("phase") == WAITING_PHASE
    if silent_s(attempt.last_progress_at or begun) > limit and not is_waiting:
        return Stop(FailureReason.STALLED, f"no progress for {limit:g} s")
    if attempt.last_beat_at is None:
        return Say("Starting on the cluster.")
    return Wait()
