"""What happens to an attempt whatever it is for, a job or a run: Ray has it, it is to stop, it is over.

Functions take the session of the transaction, and an attempt as it was read before.
"""

from datetime import datetime
from typing import TypeVar

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from booth.contract.states import Desired, FailureReason
from booth_service.control.records import Attempt, AttemptState, RunAttempt

AnyAttempt = TypeVar("AnyAttempt", Attempt, RunAttempt)


def locked(session: Session, attempt: AnyAttempt) -> AnyAttempt:
    """The same attempt in this session, locked."""
    return session.get_one(type(attempt), inspect(attempt).identity, with_for_update=True)


def note_submitted(session: Session, attempt: AnyAttempt, now: datetime) -> None:
    """Ray has the attempt's job. From now on, a cluster that does not know it has lost it."""
    locked(session, attempt).submitted_at = now


def note_stop(session: Session, attempt: AnyAttempt, reason: FailureReason, detail: str) -> None:
    """The attempt will end for this reason; its driver's own story comes second."""
    row = locked(session, attempt)
    if row.state is AttemptState.ACTIVE and row.stop_reason is None:
        row.stop_reason, row.detail = reason, detail


def close(session: Session, attempt: AnyAttempt, now: datetime) -> None:
    """Nothing of the attempt runs any more."""
    row = locked(session, attempt)
    row.state = AttemptState.CLOSED
    row.closed_at = now


def true_reason(desired: Desired, attempt: Attempt | RunAttempt, said: FailureReason) -> FailureReason:
    """Why we stopped it outweighs what the driver makes of being stopped."""
    if attempt.stop_reason is not None:
        return attempt.stop_reason
    if desired is Desired.CANCEL:
        return FailureReason.CANCELLED
    return FailureReason.INTERNAL if said in (FailureReason.CANCELLED, FailureReason.SUPERSEDED) else said
