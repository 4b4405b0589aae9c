"""The decisions about a shared device, carried out: the `serving` row, Serve told, returning replicas warmed."""

import logging
from datetime import datetime

from sqlalchemy import select

from booth_service.control import lifecycle, run_lifecycle, serve_app, sharing, warm
from booth_service.control.launcher import ClusterAway
from booth_service.control.plane import Plane
from booth_service.control.records import Job, Model, Run, Serving, ServingState

logger = logging.getLogger(__name__)


def share(plane: Plane, waiting: list[str], running: int) -> str:
    """The device's next state is on its way. Returns why no waiting job may start now; "" where they may.

    `waiting` are the ids of queued jobs and runs, oldest first, `running` counts the attempts that are not
    closed.
    """
    row = _row(plane)
    work = len(waiting) + running if plane.settings.serving_yields else 0
    if row.state is ServingState.SERVING and not work:
        return ""
    since_s = (plane.now() - row.since).total_seconds()
    now = sharing.Situation(row.state, since_s, work, plane.serve_calls.under_way, _look(plane))
    decision = sharing.decide(now, plane.settings)
    if not isinstance(decision, sharing.Hold | sharing.ComingBack) and decision != sharing.Pause():
        logger.info("shared device, %s with %d job(s): %s", row.state.value, work, decision)
    return _apply(plane, decision, row, waiting[0] if waiting else None)


def _apply(plane: Plane, decision: sharing.Decision, row: Serving, job_id: str | None) -> str:
    match decision:
        case sharing.ServeOn():
            _become(plane, row, ServingState.SERVING)
        case sharing.Drain(say):
            _become(plane, row, ServingState.DRAINING, job_id, plane.now())
            return say
        case sharing.Leave(say):
            _tell(plane, 0)
            return say
        case sharing.Hold(say):
            return say
        case sharing.Pause(say):
            if say:
                _warn(plane, job_id, say)
            _become(plane, row, ServingState.PAUSED, row.job_id, row.since)
        case sharing.Resume():
            _become(plane, row, ServingState.PAUSED, None, row.since)
            _tell(plane, None)
        case sharing.Return():
            warm.newest(plane, _published_since(plane, row.since))
            _become(plane, row, ServingState.SERVING)
        case sharing.ComingBack():
            pass
    return ""


def _warn(plane: Plane, work_id: str | None, say: str) -> None:
    logger.warning(say)
    with plane.database.write() as session:
        if work_id is not None and session.get(Job, work_id) is not None:
            lifecycle.say(session, work_id, plane.now(), say)
        elif work_id is not None and session.get(Run, work_id) is not None:
            run_lifecycle.say(session, work_id, say)


def _row(plane: Plane) -> Serving:
    with plane.database.read() as session:
        row = session.get(Serving, sharing.STACK)
    return row or Serving(id=sharing.STACK, state=ServingState.SERVING, job_id=None, since=plane.now())


def _become(
    plane: Plane, row: Serving, state: ServingState, job_id: str | None = None, since: datetime | None = None
) -> None:
    since = since or plane.now()
    if (row.state, row.job_id, row.since) == (state, job_id, since) or row.state is state is ServingState.SERVING:
        return
    with plane.database.write() as session:
        session.merge(Serving(id=sharing.STACK, state=state, job_id=job_id, since=since))


def _look(plane: Plane) -> serve_app.ServeView | None:
    try:
        return serve_app.view_of(plane.launcher.serve_details())
    except ClusterAway as error:
        logger.warning("Serve does not say what it runs: %s", error)
        return None


def _tell(plane: Plane, capacity: int | None) -> None:
    """Serve has the new capacity, or is told again in the next round."""
    try:
        plane.launcher.deploy(serve_app.with_capacity(plane.launcher.serve_details(), capacity))
    except ClusterAway as error:
        logger.warning("Serve was not told its capacity: %s", error)


def _published_since(plane: Plane, since: datetime) -> list[Model]:
    """Models of the jobs that inference made room for, the newest first."""
    query = select(Model).where(Model.created_at >= since, Model.deleted_at.is_(None))
    with plane.database.read() as session:
        return list(session.scalars(query.order_by(Model.created_at.desc())))
