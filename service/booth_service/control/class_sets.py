"""Leases of class-image sets: of jobs that need one set at the same time, one makes it and the others wait.

A lease belongs to an attempt and is void as soon as that attempt is no longer active, so that it needs no clock of its
own: whoever ends a dead or stalled attempt frees its sets too.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from booth_service.control import lifecycle
from booth_service.control.records import Attempt, AttemptState, ClassSetLease, Job

ANOTHER_TENANT = "another tenant's job"


def claim(session: Session, job_id: str, number: int, address: str, now: datetime, *, is_shared: bool) -> str | None:
    """None where the attempt holds the set's lease now, else who does. A repetition changes nothing.

    Raises conflict where the attempt is over. Sets that tenants share never tell one of them about another's job.
    """
    job, _ = lifecycle.live_attempt(session, job_id, number)
    name = _name(job, address, is_shared)
    dialects: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    insert = dialects[session.get_bind().dialect.name](ClassSetLease)
    row = insert.values(class_set=name, job_id=job_id, attempt=number, claimed_at=now)
    keep = {"class_set": row.excluded.class_set}  # changes nothing, and locks the row that is there already
    session.execute(row.on_conflict_do_update(index_elements=[ClassSetLease.class_set], set_=keep))
    lease = session.get_one(ClassSetLease, name, populate_existing=True)
    if (lease.job_id, lease.attempt) == (job_id, number):
        return None
    holder = session.get_one(Attempt, (lease.job_id, lease.attempt), populate_existing=True)
    if holder.state is AttemptState.ACTIVE:
        of_same_tenant = session.get_one(Job, lease.job_id).tenant_id == job.tenant_id
        return f"job {lease.job_id}" if of_same_tenant else ANOTHER_TENANT
    lease.job_id, lease.attempt, lease.claimed_at = job_id, number, now
    return None


def release(session: Session, job_id: str, number: int, address: str, *, is_shared: bool) -> None:
    """The attempt holds the set's lease no more; anyone else's stays."""
    job = session.get_one(Job, job_id)
    session.execute(
        delete(ClassSetLease).where(
            ClassSetLease.class_set == _name(job, address, is_shared),
            ClassSetLease.job_id == job_id,
            ClassSetLease.attempt == number,
        )
    )


def _name(job: Job, address: str, is_shared: bool) -> str:
    return f"{'shared' if is_shared else job.tenant_id}/{address}"
