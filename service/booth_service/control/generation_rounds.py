"""What the reconciler does with generations in each of its rounds: load, decide, apply, as with jobs."""

import logging
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select

from booth.contract.states import FailureReason
from booth_service.control import generation_lifecycle as lifecycle
from booth_service.control import generation_policy, policy
from booth_service.control.launcher import BULK_DRIVER, ClusterAway, RayJob
from booth_service.control.plane import Plane
from booth_service.control.records import AttemptState, Generation, GenerationAttempt
from booth_service.storage import keys

logger = logging.getLogger(__name__)


def open_attempts(plane: Plane) -> Iterator[tuple[Generation, GenerationAttempt]]:
    """Every attempt that is not closed, with its generation."""
    query = select(Generation, GenerationAttempt).join(
        GenerationAttempt, GenerationAttempt.generation_id == Generation.id
    )
    with plane.database.read() as session:
        rows = session.execute(query.where(GenerationAttempt.state != AttemptState.CLOSED).order_by(Generation.id))
        found = [(generation, attempt) for generation, attempt in rows]
    return iter(found)


def reconcile(plane: Plane, generation: Generation, attempt: GenerationAttempt, watching_since: datetime) -> None:
    """The attempt was looked at, and what was due is done."""
    ray = plane.launcher.status(attempt.ray_submission_id)
    now = plane.now()
    with plane.database.read() as session:
        gone = lifecycle.is_model_gone(session, generation)
    decision = generation_policy.decide(
        generation, attempt, ray.status, plane.settings, now, watching_since, is_model_gone=gone
    )
    if not isinstance(decision, policy.Wait | policy.Say):
        logger.info("%s: %s", attempt.ray_submission_id, decision)
    _apply(plane, decision, generation, attempt, ray, now)


def fail_orphans(plane: Plane) -> None:
    """No generation waits whose model was deleted."""
    with plane.database.read() as session:
        orphans = [each.id for each in lifecycle.waiting(session) if lifecycle.is_model_gone(session, each)]
    for generation_id in orphans:
        with plane.database.write() as session:
            row = session.get_one(Generation, generation_id, with_for_update=True)
            if not row.state.is_final:
                lifecycle.fail(row, plane.now(), FailureReason.MODEL_DELETED)


def start(plane: Plane, generation: Generation, now: datetime) -> None:
    """The generation's next attempt is claimed and submitted, where it still waits for one."""
    with plane.database.write() as session:
        attempt = lifecycle.claim(session, generation.id, now)
    if attempt is not None:
        _launch(plane, attempt)


def _apply(
    plane: Plane,
    decision: policy.Decision,
    generation: Generation,
    attempt: GenerationAttempt,
    ray: RayJob,
    now: datetime,
) -> None:
    match decision:
        case policy.Say(status_detail):
            with plane.database.write() as session:
                lifecycle.say(session, generation.id, status_detail)
        case policy.Launch():
            _launch(plane, attempt)
        case policy.Stop(reason, detail):
            if reason is not None:
                with plane.database.write() as session:
                    lifecycle.note_stop(session, attempt, reason, detail)
            plane.launcher.stop(attempt.ray_submission_id)
        case policy.End(reason, detail):
            end = policy.End(reason, "\n".join(filter(None, [detail, ray.message])))
            with plane.database.write() as session:
                lifecycle.end_attempt(session, generation.id, attempt.n, attempt.fence, end, plane.settings, now)
        case policy.Close():
            _keep_log(plane, generation, attempt)
            with plane.database.write() as session:
                lifecycle.close_attempt(session, attempt, now)


def _launch(plane: Plane, attempt: GenerationAttempt) -> None:
    try:
        plane.launcher.submit(attempt.ray_submission_id, attempt.generation_id, attempt.n, BULK_DRIVER)
    except ClusterAway as error:
        logger.warning("%s cannot be submitted: %s", attempt.ray_submission_id, error)
        with plane.database.write() as session:
            lifecycle.say(session, attempt.generation_id, "The Ray cluster does not take jobs; waiting for it.")
        return
    with plane.database.write() as session:
        lifecycle.note_submitted(session, attempt, plane.now())


def _keep_log(plane: Plane, generation: Generation, attempt: GenerationAttempt) -> None:
    """What the driver printed is in the object store for the operator, as far as Ray still has it."""
    try:
        text = plane.launcher.logs(attempt.ray_submission_id)
    except ClusterAway:
        return
    key = keys.generation_log(keys.generation(generation.tenant_id, generation.id), attempt.n)
    plane.store.put(key, text.encode(), "text/plain; charset=utf-8")
