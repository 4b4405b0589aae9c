"""Evaluations on their way in, as their owners see them, and what their drivers are told."""

from sqlalchemy.orm import Session

from booth.contract.evaluation import EvaluationBrief
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict
from booth_service.control.records import Evaluation, RunAttempt


def brief(plane: Plane, session: Session, evaluation: Evaluation, attempt: RunAttempt) -> EvaluationBrief:
    """All that the attempt's driver needs to know. Its model is there."""
    raise conflict(f"Evaluations are not run yet ({evaluation.id}).")
