"""The HTTP API of runs' drivers, as `attempt_api` is of jobs'. Each route takes its attempt's token alone."""

from fastapi import APIRouter, Depends

from booth.contract.attempts import Beat, BeatReply, Failed
from booth.contract.bulk import Finished, GenerationBrief
from booth.contract.evaluation import EvaluationBrief
from booth.contract.groups import CellPage, ClaimedCell, GroupBrief
from booth.contract.states import FailureReason
from booth_service.control import evaluations, generations, group_cells, groups, policy
from booth_service.control import run_lifecycle as lifecycle
from booth_service.control.auth import Here, check_attempt
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict
from booth_service.control.records import Evaluation, Generation, Group

# `job_id` here is the run's: an attempt's token is made of it in the same way.
router = APIRouter(prefix="/internal/runs/{job_id}/{number}", dependencies=[Depends(check_attempt)])


@router.get("")
def get_brief(job_id: str, number: int, plane: Here) -> GenerationBrief | EvaluationBrief | GroupBrief:
    """All that the driver needs to know; conflict where the attempt is over or its model was deleted."""
    with plane.database.read() as session:
        run, attempt = lifecycle.live_attempt(session, job_id, number)
        if not lifecycle.is_model_gone(session, run):
            match run:
                case Generation():
                    return generations.brief(plane, session, run, attempt)
                case Evaluation():
                    return evaluations.brief(plane, session, run, attempt)
                case Group():
                    return group_cells.brief(plane, session, run, attempt)
    _end(plane, job_id, number, Failed(fence=attempt.fence, reason=FailureReason.MODEL_DELETED))
    raise conflict(f"The model of {job_id} was deleted.")


@router.post("/beat")
def post_beat(job_id: str, number: int, beat: Beat, plane: Here) -> BeatReply:
    """What the driver says is stored; what the owner wants comes back."""
    with plane.database.write() as session:
        return BeatReply(desired=lifecycle.beat(session, job_id, number, beat, plane.now()))


@router.post("/done")
def post_done(job_id: str, number: int, finished: Finished, plane: Here) -> dict[str, str]:
    """All that the run is for is there: it succeeded."""
    with plane.database.read() as session:
        run, _ = lifecycle.locked_attempt(session, job_id, number, finished.fence)
    if isinstance(run, Generation):
        generations.check_manifest(plane, run, finished.manifest_key, finished.manifest_sha256)
    if isinstance(run, Evaluation | Group):
        evaluations.check_report(plane, finished.manifest_key, finished.manifest_sha256)
    with plane.database.write() as session:
        manifest = (finished.manifest_key, finished.manifest_sha256)
        lifecycle.succeed(session, job_id, number, finished.fence, manifest, plane.now())
        if isinstance(run, Group):
            groups.tell_outcome(session, session.get_one(Group, job_id))
    return {}


@router.post("/failed")
def post_failed(job_id: str, number: int, failed: Failed, plane: Here) -> dict[str, str]:
    """The attempt is over; its run is tried again, failed or was cancelled."""
    _end(plane, job_id, number, failed)
    return {}


@router.post("/cells/{cell_id}")
def claim_cell(job_id: str, number: int, cell_id: str, plane: Here) -> ClaimedCell:
    """The next attempt of a group's job, for this attempt of the group to run."""
    with plane.database.write() as session:
        return group_cells.claim(session, job_id, number, cell_id, plane.now())


@router.get("/cells")
def get_cells(job_id: str, number: int, plane: Here) -> CellPage:
    """All cells of a group with all that they were scored, for its report."""
    with plane.database.read() as session:
        lifecycle.live_attempt(session, job_id, number)
        return group_cells.page(session, job_id, with_keys=True)


def _end(plane: Plane, run_id: str, number: int, failed: Failed) -> None:
    end = policy.End(failed.reason, failed.detail)
    with plane.database.write() as session:
        lifecycle.end_attempt(session, run_id, number, failed.fence, end, plane.settings, plane.now())
