"""What the reconciler does with runs (generations, evaluations, groups) in each of its rounds: load, decide, apply."""

import logging
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select

from booth.contract.states import FailureReason
from booth_service.control import attempts, group_cells, policy, run_policy
from booth_service.control import run_lifecycle as lifecycle
from booth_service.control.launcher import ClusterAway, RayJob
from booth_service.control.plane import Plane
from booth_service.control.records import AttemptState, Group, Run, RunAttempt
from booth_service.storage import keys

logger = logging.getLogger(__name__)


def open_attempts(plane: Plane) -> Iterator[tuple[Run, RunAttempt]]:
    """Every attempt that is not closed, with its run."""
    query = select(Run, RunAttempt).join(RunAttempt, RunAttempt.run_id == Run.id)
    with plane.database.read() as session:
        rows = session.execute(query.where(RunAttempt.state != AttemptState.CLOSED).order_by(Run.id))
        found = [(run, attempt) for run, attempt in rows]
    return iter(found)


def reconcile(plane: Plane, run: Run, attempt: RunAttempt, watching_since: datetime) -> None:
    """The attempt was looked at, and what was due is done."""
    ray = plane.launcher.status(attempt.ray_submission_id)
    now = plane.now()
    with plane.database.read() as session:
        gone = lifecycle.is_model_gone(session, run)
        moved_at = group_cells.moved_at(session, attempt.ray_submission_id) if isinstance(run, Group) else None
    if moved_at is not None and attempt.first_at is None:
        with plane.database.write() as session:
            attempt = lifecycle.note_first(session, attempt, moved_at)
    decision = run_policy.decide(
        run, attempt, ray.status, plane.settings, now, watching_since, is_model_gone=gone, moved_at=moved_at
    )
    if not isinstance(decision, policy.Wait | policy.Say):
        logger.info("%s: %s", attempt.ray_submission_id, decision)
    _apply(plane, decision, run, attempt, ray, now)


def fail_orphans(plane: Plane) -> None:
    """No run waits whose model was deleted."""
    with plane.database.read() as session:
        orphans = [each.id for each in lifecycle.waiting(session) if lifecycle.is_model_gone(session, each)]
    for run_id in orphans:
        with plane.database.write() as session:
            row = session.get_one(Run, run_id, with_for_update=True)
            if not row.state.is_final:
                lifecycle.fail(row, plane.now(), FailureReason.MODEL_DELETED)


def start(plane: Plane, run: Run, now: datetime) -> None:
    """The run's next attempt is claimed and submitted, where it still waits for one."""
    with plane.database.write() as session:
        attempt = lifecycle.claim(session, run.id, now)
    if attempt is not None:
        _launch(plane, run, attempt)


def _apply(
    plane: Plane,
    decision: policy.Decision,
    run: Run,
    attempt: RunAttempt,
    ray: RayJob,
    now: datetime,
) -> None:
    match decision:
        case policy.Say(status_detail):
            with plane.database.write() as session:
                lifecycle.say(session, run.id, status_detail)
        case policy.Launch():
            _launch(plane, run, attempt)
        case policy.Stop(reason, detail):
            if reason is not None:
                with plane.database.write() as session:
                    attempts.note_stop(session, attempt, reason, detail)
            plane.launcher.stop(attempt.ray_submission_id)
        case policy.End(reason, detail):
            end = policy.End(reason, "\n".join(filter(None, [detail, ray.message])))
            with plane.database.write() as session:
                lifecycle.end_attempt(session, run.id, attempt.n, attempt.fence, end, plane.settings, now)
        case policy.Close():
            _keep_log(plane, run, attempt)
            with plane.database.write() as session:
                attempts.close(session, attempt, now)


def _launch(plane: Plane, run: Run, attempt: RunAttempt) -> None:
    try:
        plane.launcher.submit(attempt.ray_submission_id, attempt.run_id, attempt.n, run.program)
    except ClusterAway as error:
        logger.warning("%s cannot be submitted: %s", attempt.ray_submission_id, error)
        with plane.database.write() as session:
            lifecycle.say(session, attempt.run_id, "The Ray cluster does not take jobs; waiting for it.")
        return
    with plane.database.write() as session:
        attempts.note_submitted(session, attempt, plane.now())


def _keep_log(plane: Plane, run: Run, attempt: RunAttempt) -> None:
    """What the driver printed is in the object store for the operator, as far as Ray still has it."""
    try:
        text = plane.launcher.logs(attempt.ray_submission_id)
    except ClusterAway:
        return
    key = keys.run_log(keys.run(run.kind, run.tenant_id, run.id), attempt.n)
    plane.store.put(key, text.encode(), "text/plain; charset=utf-8")
