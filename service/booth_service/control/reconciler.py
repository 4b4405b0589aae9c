"""The loop that makes true what SQL says: load, decide, apply, every second or so. Idempotent, one per database.

Runs in a thread of its own. An error is recorded and the next round tries again; one job's error never stops another's.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from booth.contract.states import Desired, JobState
from booth_service.control import (
    attempt_logs,
    attempts,
    groups,
    lifecycle,
    policy,
    run_lifecycle,
    run_rounds,
    shared_device,
)
from booth_service.control.launcher import SCORER, ClusterAway, RayJob
from booth_service.control.plane import Plane
from booth_service.control.records import Attempt, AttemptState, Job, Run, RunAttempt
from booth_service.control.sweep import clear_unpublished, sweep

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 30.0


class Reconciler:
    """Watches from the moment it is made: silence before that is nobody's fault."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.watching_since = plane.now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._swept_at = float("-inf")
        self._beside: set[str] = set()

    def start(self) -> None:
        """Rounds begin in the background."""
        self._thread.start()

    def stop(self) -> None:
        """No round runs any more."""
        self._stopped.set()
        self._thread.join(timeout=60)

    def round(self) -> None:
        """Every attempt that is not closed and every waiting job was looked at once, of generations too."""
        for job, attempt in self._open_attempts():
            self._guarded(self._reconcile, job, attempt)
        for generation, drawing in run_rounds.open_attempts(self.plane):
            self._guarded(run_rounds.reconcile, self.plane, generation, drawing, self.watching_since)
        self._guarded(run_rounds.fail_orphans, self.plane)
        self._guarded(groups.stop_orphaned_cells, self.plane)
        self._guarded(self._advance_queue)

    def _run(self) -> None:
        while not self._stopped.wait(self.plane.settings.reconcile_interval_s):
            self._guarded(self.round)
            if time.monotonic() - self._swept_at > SWEEP_INTERVAL_S:
                self._swept_at = time.monotonic()
                self._guarded(sweep, self.plane)

    def _guarded(self, step: Callable[..., object], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception:
            logger.exception("reconciling failed; it is tried again")

    def _open_attempts(self) -> list[tuple[Job, Attempt]]:
        query = select(Job, Attempt).join(Attempt, Attempt.job_id == Job.id)
        with self.plane.database.read() as session:
            rows = session.execute(query.where(Attempt.state != AttemptState.CLOSED).order_by(Job.id))
            return [(job, attempt) for job, attempt in rows]

    def _reconcile(self, job: Job, attempt: Attempt) -> None:
        ray = self.plane.launcher.status(attempt.ray_submission_id)
        now = self.plane.now()
        decide = policy.decide if job.group_id is None else policy.decide_cell
        decision = decide(job, attempt, ray.status, self.plane.settings, now, self.watching_since)
        if not isinstance(decision, policy.Wait):
            logger.info("%s: %s", attempt.ray_submission_id, decision)
        self._apply(decision, job, attempt, ray, now)
        if policy.scores_beside(job, attempt):
            self._score_beside(attempt)

    def _apply(self, decision: policy.Decision, job: Job, attempt: Attempt, ray: RayJob, now: datetime) -> None:
        database, launcher = self.plane.database, self.plane.launcher
        match decision:
            case policy.Say(status_detail):
                with database.write() as session:
                    lifecycle.say(session, job.id, now, status_detail)
            case policy.Launch():
                self._launch(job, attempt)
            case policy.Stop(reason, detail):
                if reason is not None:
                    with database.write() as session:
                        attempts.note_stop(session, attempt, reason, detail)
                if job.group_id is None:  # a cell's Ray job is its group's
                    launcher.stop(attempt.ray_submission_id)
            case policy.End(reason, detail):
                end = policy.End(reason, "\n".join(filter(None, [detail, ray.message])))
                with database.write() as session:
                    lifecycle.end_attempt(session, job.id, attempt.n, attempt.fence, end, self.plane.settings, now)
            case policy.Close():
                if job.group_id is None:
                    attempt_logs.keep(self.plane, job, attempt)
                clear_unpublished(self.plane, job, attempt)
                with database.write() as session:
                    attempts.close(session, attempt, now)

    def _launch(self, job: Job, attempt: Attempt) -> None:
        database, now = self.plane.database, self.plane.now()
        try:
            self.plane.launcher.submit(attempt.ray_submission_id, job.id, attempt.n)
        except ClusterAway as error:
            logger.warning("%s cannot be submitted: %s", attempt.ray_submission_id, error)
            with database.write() as session:
                lifecycle.say(session, job.id, now, "The Ray cluster does not take jobs; waiting for it.")
            return
        with database.write() as session:
            attempts.note_submitted(session, attempt, now)

    def _score_beside(self, attempt: Attempt) -> None:
        """The attempt's checkpoints are scored beside its gang, by a Ray job that ends by itself with the training."""
        submission_id = f"{attempt.ray_submission_id}-score"
        if submission_id not in self._beside:
            self.plane.launcher.submit(submission_id, attempt.job_id, attempt.n, SCORER)
            self._beside.add(submission_id)  # should this process start anew, a repetition is harmless

    def _advance_queue(self) -> None:
        now = self.plane.now()
        with self.plane.database.read() as session:
            running = _running(session)
            waiting: list[policy.Waiting] = [*_waiting(session), *run_lifecycle.waiting(session)]
            waiting.sort(key=lambda each: each.created_at)
        hold = shared_device.share(self.plane, [each.id for each in waiting], running)
        for job, decision in policy.decide_queue(waiting, running, self.plane.settings, now, hold):
            match decision:
                case policy.Claim() if isinstance(job, Run):
                    run_rounds.start(self.plane, job, now)
                case policy.Say(status_detail) if isinstance(job, Run):
                    with self.plane.database.write() as session:
                        run_lifecycle.say(session, job.id, status_detail)
                case policy.Claim():
                    with self.plane.database.write() as session:
                        attempt = lifecycle.claim(session, job.id, now)
                    if attempt is not None and isinstance(job, Job):
                        self._launch(job, attempt)
                case policy.Say(status_detail):
                    with self.plane.database.write() as session:
                        lifecycle.say(session, job.id, now, status_detail)


def _running(session: Session) -> int:
    """Attempts that are not closed; a group counts as one, its cells do not."""
    of_jobs = select(func.count()).select_from(Attempt).join(Job, Job.id == Attempt.job_id)
    of_jobs = of_jobs.where(Attempt.state != AttemptState.CLOSED, Job.group_id.is_(None))
    of_runs = select(func.count()).where(RunAttempt.state != AttemptState.CLOSED)
    return (session.scalar(of_jobs) or 0) + (session.scalar(of_runs) or 0)


def _waiting(session: Session) -> list[Job]:
    """Queued jobs of which no attempt is open, oldest first."""
    has_open = exists().where(Attempt.job_id == Job.id, Attempt.state != AttemptState.CLOSED)
    alone = Job.group_id.is_(None)  # a group's Ray job claims its cells itself
    query = select(Job).where(Job.state == JobState.QUEUED, Job.desired == Desired.RUN, alone, ~has_open)
    return list(session.scalars(query.order_by(Job.id)))
