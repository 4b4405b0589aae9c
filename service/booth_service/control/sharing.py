"""One device for inference and jobs: whose it is now. Pure decisions, and what users are told meanwhile.

Where `serving_yields` names a resource, a job that waits first makes inference leave it: serving -> draining -> paused.
When no job waits or runs, inference comes back with the newest models in memory: paused -> serving. A decision is made
from what is so now, never from what was decided before, so that a control plane which starts anew in any state, or a
Serve that somebody deployed again, is only another situation.
"""

import math
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from booth.contract.jobs import Progress
from booth_service.control.problems import ProblemError
from booth_service.control.records import (
    Attempt,
    AttemptState,
    Job,
    Run,
    RunAttempt,
    Serving,
    ServingState,
)
from booth_service.control.serve_app import ServeView
from booth_service.settings import Settings

STACK = "stack"
LEAVE_GRACE_S = 60.0  # beyond what a replica may take to drain; then jobs start whether it has left or not
UNKNOWN_RETRY_S = 30
LONGEST_RETRY_S = 300


@dataclass(frozen=True)
class Situation:
    """What is so now. `work` counts jobs that wait or run, `calls` those for pictures under way, `since_s` the seconds
    in this state; `serve` is None where Serve does not answer."""

    state: ServingState
    since_s: float
    work: int
    calls: int
    serve: ServeView | None


@dataclass(frozen=True)
class ServeOn:
    """Inference may hold the device."""


@dataclass(frozen=True)
class Drain:
    """Inference takes no more calls, for a job waits."""

    say: str = "Waiting for inference to leave the device."


@dataclass(frozen=True)
class Hold:
    """Jobs wait on; their owners are told why."""

    say: str


@dataclass(frozen=True)
class Leave:
    """Serve is told to end all replicas once they have finished what is under way."""

    say: str = "Waiting for inference to leave the device."


@dataclass(frozen=True)
class Pause:
    """The device is the jobs'. With a text, it may not be free: why jobs start all the same."""

    say: str = ""


@dataclass(frozen=True)
class Resume:
    """Serve is told to start its replicas again."""


@dataclass(frozen=True)
class Return:
    """A replica is there again: it gets the newest models, then inference is on."""


@dataclass(frozen=True)
class ComingBack:
    """Replicas are on their way."""


Decision = ServeOn | Drain | Hold | Leave | Pause | Resume | Return | ComingBack


def decide(now: Situation, settings: Settings) -> Decision:
    """What to do next with the device that inference and jobs share."""
    if now.work == 0 or not settings.serving_yields:
        return _for_inference(now)
    if now.state is ServingState.SERVING:
        return Drain()
    if now.state is ServingState.DRAINING:
        return _draining(now, settings)
    deployed_again = now.serve is not None and now.serve.is_deployed and not now.serve.is_off
    return Drain() if deployed_again else Pause()


def _for_inference(now: Situation) -> Decision:
    if now.state is ServingState.SERVING:
        return ServeOn()
    if now.serve is None:
        return ComingBack()
    if not now.serve.is_deployed:
        return ServeOn()
    if now.serve.is_off:
        return Resume()
    return Return() if now.serve.running else ComingBack()


def _draining(now: Situation, settings: Settings) -> Decision:
    limit_s = 2 * settings.serving_drain_s + LEAVE_GRACE_S
    is_overdue = now.since_s > limit_s
    serve = now.serve
    if serve is None:
        if is_overdue:
            return Pause(f"Ray Serve has not answered for {limit_s:.0f} s; starting without knowing the device free.")
        return Hold("Waiting for inference to leave the device; Ray Serve does not answer.")
    if serve.replicas == 0 and (serve.is_off or not serve.is_deployed):
        return Pause()
    if is_overdue:
        return Pause(f"Inference has not left the device within {limit_s:.0f} s; starting all the same.")
    if serve.is_off:
        return Hold(Leave.say)
    if now.calls and now.since_s <= settings.serving_drain_s:
        calls = f"{now.calls} call{'s' if now.calls > 1 else ''}"
        return Hold(f"Waiting for inference to finish {calls} for pictures.")
    return Leave()


def require_serving(session: Session, tenant_id: str) -> None:
    """Inference takes calls. Raises paused, with whose job is in the way and about how long."""
    serving = session.get(Serving, STACK)
    if serving is None or serving.state is ServingState.SERVING:
        return
    if serving.job_id is None:
        detail = "No job waits or runs any more."
        raise ProblemError("paused", "Inference is coming back.", detail, "Try again shortly.", UNKNOWN_RETRY_S)
    raise paused(_in_the_way(session, serving.job_id), tenant_id)


def paused(work: Job | Run | None, tenant_id: str) -> ProblemError:
    """503: inference has made room. Only the owner of the job or run learns which one it is for; None is one
    that cannot be told any more."""
    kind = work.kind if isinstance(work, Run) else "job"
    whose = f"your {kind} {work.id}" if work is not None and work.tenant_id == tenant_id else "another job"
    eta_s, what = _rest(work) if work is not None else (None, "")
    left = f"{what} takes about {_duration(eta_s)} more" if eta_s else ""
    detail = f"The device is {whose}'s now; {left or 'how long it takes is not known yet'}."
    remedy = "Try again later; pictures are drawn again when no job waits or runs."
    retry_after_s = min(LONGEST_RETRY_S, math.ceil(eta_s)) if eta_s else UNKNOWN_RETRY_S
    return ProblemError("paused", "Inference is paused while a job runs.", detail, remedy, retry_after_s)


def _rest(work: Job | Run) -> tuple[float | None, str]:
    """About how many seconds are left, where that is known, and of what."""
    if isinstance(work, Run):
        return work.eta_s, "it"
    progress = Progress.model_validate(work.progress)
    return progress.eta_s, f"its phase {progress.phase!r}"


def _in_the_way(session: Session, work_id: str) -> Job | Run | None:
    """What runs; before it does, what inference makes room for."""
    of_jobs = select(Job).join(Attempt, Attempt.job_id == Job.id).where(Attempt.state != AttemptState.CLOSED)
    of_runs = select(Run).join(RunAttempt, RunAttempt.run_id == Run.id).where(RunAttempt.state != AttemptState.CLOSED)
    work: Job | Run | None = session.scalars(of_jobs.order_by(Job.id).limit(1)).first()
    work = work or session.scalars(of_runs.order_by(Run.id).limit(1)).first()
    if work is None:
        work = session.get(Job, work_id) or session.get(Run, work_id)
    return work if work is not None and not work.state.is_final else None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
