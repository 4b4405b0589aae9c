"""The HTTP API of generations' drivers, as `attempt_api` is of jobs'. Each route takes its attempt's token alone."""

from fastapi import APIRouter, Depends

from booth.contract.attempts import Beat, BeatReply, Failed
from booth.contract.bulk import AllDrawn, GenerationBrief
from booth.contract.states import FailureReason
from booth_service.control import generation_lifecycle as lifecycle
from booth_service.control import generations, policy
from booth_service.control.auth import Here, check_attempt
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict

# `job_id` here is the generation's: an attempt's token is made of it in the same way.
router = APIRouter(prefix="/internal/generations/{job_id}/{number}", dependencies=[Depends(check_attempt)])


@router.get("")
def get_brief(job_id: str, number: int, plane: Here) -> GenerationBrief:
    """All that the driver needs to know; conflict where the attempt is over or its model was deleted."""
    with plane.database.read() as session:
        generation, attempt = lifecycle.live_attempt(session, job_id, number)
        if not lifecycle.is_model_gone(session, generation):
            return generations.brief(plane, session, generation, attempt)
    _end(plane, job_id, number, Failed(fence=attempt.fence, reason=FailureReason.MODEL_DELETED))
    raise conflict(f"The model of {job_id} was deleted.")


@router.post("/beat")
def post_beat(job_id: str, number: int, beat: Beat, plane: Here) -> BeatReply:
    """What the driver says is stored; what the owner wants comes back."""
    with plane.database.write() as session:
        return BeatReply(desired=lifecycle.beat(session, job_id, number, beat, plane.now()))


@router.post("/drawn")
def post_drawn(job_id: str, number: int, drawn: AllDrawn, plane: Here) -> dict[str, str]:
    """All pictures are there: the generation succeeded."""
    with plane.database.read() as session:
        generation, _ = lifecycle.locked_attempt(session, job_id, number, drawn.fence)
    generations.check_manifest(plane, generation, drawn.manifest_key, drawn.manifest_sha256)
    with plane.database.write() as session:
        manifest = (drawn.manifest_key, drawn.manifest_sha256)
        lifecycle.succeed(session, job_id, number, drawn.fence, manifest, plane.now())
    return {}


@router.post("/failed")
def post_failed(job_id: str, number: int, failed: Failed, plane: Here) -> dict[str, str]:
    """The attempt is over; its generation is tried again, failed or was cancelled."""
    _end(plane, job_id, number, failed)
    return {}


def _end(plane: Plane, generation_id: str, number: int, failed: Failed) -> None:
    end = policy.End(failed.reason, failed.detail)
    with plane.database.write() as session:
        lifecycle.end_attempt(session, generation_id, number, failed.fence, end, plane.settings, plane.now())
