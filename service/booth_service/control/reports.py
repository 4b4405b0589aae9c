"""Finished reports of evaluations, groups and jobs, each file with a link."""

import posixpath

from sqlalchemy import select
from sqlalchemy.orm import Session

from booth.contract.evaluation import REPORT_FILES, ReportFile, ReportFiles
from booth.contract.states import RunState
from booth_service.control import lifecycle
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, conflict
from booth_service.control.records import Evaluation, Job, Model, Run
from booth_service.storage import keys


def of_run(plane: Plane, run: Run) -> ReportFiles:
    """The report of a run that has succeeded; conflict before that."""
    if run.manifest_key is None or run.state is not RunState.SUCCEEDED:
        title = f"{run.kind.capitalize()} {run.id} is {run.state.value}, and has no report."
        remedy = "Wait for its end." if not run.state.is_final else f"Its error says why: GET /v1/{run.kind}s/{run.id}."
        raise conflict(title, remedy)
    return _linked(plane, posixpath.dirname(run.manifest_key))


def of_job(plane: Plane, tenant_id: str, job_id: str) -> ReportFiles:
    """The newest finished evaluation's of the job's model, else that on the job's own scores. Raises not_found where
    there is none, conflict where the model is not there or was deleted."""
    with plane.database.read() as session:
        job = lifecycle.owned_job(session, tenant_id, job_id)
        evaluation = _newest_evaluation(session, job)
    if evaluation is not None:
        return of_run(plane, evaluation)
    for number in range(job.attempt, 0, -1):
        found = _linked(plane, posixpath.dirname(keys.job_report_file(tenant_id, job.id, number, "report.json")))
        if found.files:
            return found
    remedy = f"Make one: boothctl evaluate {job.model_id}, or model.evaluate()."
    raise ProblemError("not_found", f"There is no report on job {job_id!r} yet.", remedy=remedy)


def _newest_evaluation(session: Session, job: Job) -> Evaluation | None:
    """Raises conflict where the job has no model, or no longer."""
    if job.model_id is None:
        remedy = "Wait for its model, then evaluate that." if not job.state.is_final else "Submit it again."
        raise conflict(f"Job {job.id} is {job.state.value} and has no model, so there is no report.", remedy)
    model = session.get(Model, job.model_id)
    if model is None or model.deleted_at is not None:
        remedy = "Reports of evaluations that were made of it can be had by their ids: boothctl evaluations."
        raise conflict(f"The model of job {job.id}, {job.model_id}, was deleted, and its report with it.", remedy)
    done = (
        Evaluation.model_id == job.model_id,
        Evaluation.state == RunState.SUCCEEDED,
        Evaluation.deleted_at.is_(None),
    )
    return session.scalar(select(Evaluation).where(*done).order_by(Evaluation.id.desc()).limit(1))


def _linked(plane: Plane, folder: str) -> ReportFiles:
    sizes = {name: plane.store.size(f"{folder}/{name}") for name in REPORT_FILES}
    life_s = plane.settings.download_link_s
    return ReportFiles(
        files=[
            ReportFile(name=name, bytes=size, url=plane.store.download_link(f"{folder}/{name}", life_s))
            for name, size in sizes.items()
            if size is not None
        ]
    )
