"""The users' HTTP API of evaluations: models scored beside their baselines by a job on the cluster, and reports."""

from fastapi import APIRouter, Response
from sqlalchemy import select

from booth.contract.evaluation import EvaluationPage, EvaluationRecord, EvaluationSpec, ReportFiles
from booth_service.control import evaluations, reports, run_lifecycle
from booth_service.control.api import After, IdempotencyKey, Limit, newest_first, next_after
from booth_service.control.auth import Caller, Here
from booth_service.control.records import Evaluation

router = APIRouter(prefix="/v1")


@router.post("/evaluations", status_code=202)
def evaluate(
    spec: EvaluationSpec, tenant: Caller, plane: Here, response: Response, idempotency_key: IdempotencyKey
) -> EvaluationRecord:
    """The evaluation, stored. A repetition under the same key answers the same one."""
    record, replayed = evaluations.submit(plane, tenant, spec, idempotency_key)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return record


@router.get("/evaluations")
def list_evaluations(tenant: Caller, plane: Here, limit: Limit = 50, after: After = None) -> EvaluationPage:
    """The tenant's evaluations, newest first."""
    conditions = [Evaluation.tenant_id == tenant, Evaluation.deleted_at.is_(None), Evaluation.is_stored.is_(True)]
    with plane.database.read() as session:
        rows = list(session.scalars(newest_first(select(Evaluation), Evaluation.id, conditions, after, limit)))
        records = [evaluations.record_of(session, row) for row in rows[:limit]]
    return EvaluationPage(evaluations=records, next_after=next_after(rows, limit))


@router.get("/evaluations/{evaluation_id}")
def get_evaluation(evaluation_id: str, tenant: Caller, plane: Here) -> EvaluationRecord:
    """One evaluation."""
    with plane.database.read() as session:
        return evaluations.record_of(session, run_lifecycle.owned(session, Evaluation, tenant, evaluation_id))


@router.get("/evaluations/{evaluation_id}/report")
def get_report(evaluation_id: str, tenant: Caller, plane: Here) -> ReportFiles:
    """The files of its report, each with a link that works for a few minutes; conflict before its end."""
    with plane.database.read() as session:
        evaluation = run_lifecycle.owned(session, Evaluation, tenant, evaluation_id)
    return reports.of_run(plane, evaluation)


@router.post("/evaluations/{evaluation_id}/cancel", status_code=202)
def cancel_evaluation(evaluation_id: str, tenant: Caller, plane: Here) -> EvaluationRecord:
    """The evaluation, cancelled or about to be."""
    with plane.database.write() as session:
        evaluation = run_lifecycle.request_cancel(session, Evaluation, tenant, evaluation_id, plane.now())
        return evaluations.record_of(session, evaluation)


@router.delete("/evaluations/{evaluation_id}", status_code=204)
def delete_evaluation(evaluation_id: str, tenant: Caller, plane: Here) -> None:
    """The evaluation is gone for its user; what runs of it ends, and its pictures and report follow within a minute."""
    with plane.database.write() as session:
        run_lifecycle.delete(session, Evaluation, tenant, evaluation_id, plane.now())


@router.get("/jobs/{job_id}/report")
def get_job_report(job_id: str, tenant: Caller, plane: Here) -> ReportFiles:
    """The report on the job's model: of its newest finished evaluation, else on the job's own scores."""
    return reports.of_job(plane, tenant, job_id)
