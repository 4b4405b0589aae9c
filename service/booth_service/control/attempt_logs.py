"""What drivers printed: from Ray while an attempt runs, from the object store afterwards."""

from booth.contract.jobs import LogPage
from booth_service.control.launcher import ClusterAway
from booth_service.control.lifecycle import owned_job
from booth_service.control.plane import Plane
from booth_service.control.problems import unavailable
from booth_service.control.records import Attempt, AttemptState, Job
from booth_service.errors import ObjectMissing
from booth_service.storage import keys

PAGE_CHARS = 256 * 1024


def page(plane: Plane, tenant_id: str, job_id: str, offset: int) -> LogPage:
    """A part of the latest attempt's log. Raises not_found, or unavailable where the cluster is away."""
    with plane.database.read() as session:
        job = owned_job(session, tenant_id, job_id)
        attempt = session.get(Attempt, (job_id, job.attempt))
    if attempt is None:
        return LogPage(text="", next_offset=0, attempt=0, complete=job.state.is_final)
    text = _read(plane, job, attempt)
    part = text[offset : offset + PAGE_CHARS]
    end = min(offset, len(text)) + len(part)
    complete = attempt.state is AttemptState.CLOSED and end == len(text)
    return LogPage(text=part, next_offset=end, attempt=attempt.n, complete=complete)


def keep(plane: Plane, job: Job, attempt: Attempt) -> None:
    """The log of an attempt that ended is in the object store, as far as Ray still has it."""
    try:
        text = plane.launcher.logs(attempt.ray_submission_id)
    except ClusterAway:
        return
    plane.store.put(keys.attempt_log(job.tenant_id, job.id, attempt.n), text.encode(), "text/plain; charset=utf-8")


def _read(plane: Plane, job: Job, attempt: Attempt) -> str:
    if attempt.state is AttemptState.CLOSED:
        try:
            return plane.store.get(_key(job, attempt)).decode(errors="replace")
        except ObjectMissing:
            if job.group_id is None:
                return "The log of this attempt was lost with its cluster.\n"
    if attempt.submitted_at is None:
        return ""
    try:
        return plane.launcher.logs(attempt.ray_submission_id)
    except ClusterAway as error:
        raise unavailable("The cluster that holds the log does not answer.") from error


def _key(job: Job, attempt: Attempt) -> str:
    """Where the log is kept; of a cell that of its group's Ray job, in which all its cells speak."""
    if job.group_id is None:
        return keys.attempt_log(job.tenant_id, job.id, attempt.n)
    number = int(attempt.ray_submission_id.rpartition("-a")[2])
    return keys.run_log(keys.run("group", job.tenant_id, job.group_id), number)
