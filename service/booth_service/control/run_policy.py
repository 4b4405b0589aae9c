"""What to do next with a run: pure decisions, as `policy` makes them for jobs, and the size of generations' blocks."""

from datetime import datetime

from booth.contract.states import FailureReason
from booth_service.control import policy
from booth_service.control.policy import Decision, End, Launch, RayStatus, Say, Stop, Wait
from booth_service.control.records import AttemptState, Group, Run, RunAttempt
from booth_service.settings import Settings


def block_size(settings: Settings, width: int, height: int) -> int:
    """Pictures that are drawn as one batch: the largest batch that the endpoint would make of such pictures."""
    return max(1, min(settings.serving_batch_size, settings.serving_batch_pixels // (width * height)))


def decide(
    run: Run,
    attempt: RunAttempt,
    ray: RayStatus,
    settings: Settings,
    now: datetime,
    watching_since: datetime,
    *,
    is_model_gone: bool,
    moved_at: datetime | None = None,
) -> Decision:
    """What to do with an attempt that is not closed. Silence counts from `watching_since` at the earliest.

    `moved_at` is when last a cell of a group moved, which is progress of the group, and cells take long.
    """
    decided = policy.unless_it_works(run.desired, attempt, ray, now)
    if is_model_gone and attempt.state is AttemptState.ACTIVE:
        if isinstance(decided, Launch):
            return End(FailureReason.MODEL_DELETED)
        if decided is None:
            return Stop(FailureReason.MODEL_DELETED)
    return decided or _running(run, attempt, settings, now, watching_since, moved_at)


def _running(
    run: Run,
    attempt: RunAttempt,
    settings: Settings,
    now: datetime,
    watching_since: datetime,
    moved_at: datetime | None,
) -> Decision:
    def silent_s(since: datetime | None) -> float:
        return (now - max(since or attempt.created_at, watching_since)).total_seconds()

    begun = attempt.submitted_at or attempt.created_at
    limit = settings.no_progress_limit_s
    if silent_s(attempt.last_beat_at or begun) > limit:
        return Stop(FailureReason.STALLED, f"the driver has said nothing for {limit:g} s")
    still_s = silent_s(max(attempt.last_progress_at or begun, moved_at or begun))
    what, patience_s = run.counts.removesuffix("s"), limit
    if isinstance(run, Group):
        # A cell that stands still is stopped first, by its own rule; then its group's driver has time to go on.
        patience_s = limit + settings.first_step_limit_s
    if attempt.first_at is None and still_s > settings.first_step_limit_s:
        # Until then the pool waits for its first device and loads the model there.
        return Stop(FailureReason.NO_FIRST_STEP, f"no {what} within {settings.first_step_limit_s:g} s")
    if attempt.first_at is not None and still_s > patience_s:
        return Stop(FailureReason.STALLED, f"no {what} for {patience_s:g} s")
    return Say("Starting on the cluster.") if attempt.last_beat_at is None else Wait()
