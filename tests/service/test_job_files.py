"""The report on a job's own scores, stored from their records and pictures; without it a job still has a model."""

import hashlib
import io

import pytest
from PIL import Image
from tiny_job import PARAMS, RECIPE

from booth.contract.attempts import Beat, Brief, InstancePhoto
from booth.contract.evaluation import Report
from booth.contract.jobs import PromptCase, Scoring
from booth.contract.scores import Score, ScoredPicture, StepScore
from booth.contract.states import Desired
from booth_service.job_files import store_job_report
from booth_service.score_stage import ScoreDesk, score_run
from booth_service.scorer import ScoreWork
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

CASES = [PromptCase(kind="own", prompt="a sks teapot", text="a teapot", clip_text="a teapot")]
SCORING = Scoring(
    steps=[0, 4], cases=CASES, class_prompt="a photo of a teapot", num_images=1, num_class_images=0, seed=0,
    guidance_scale=1, num_inference_steps=2, suite="tiny", suite_id="suite-1",
)  # fmt: skip


def put(store: ObjectStore, key: str, body: bytes) -> dict:
    store.put(key, body)
    return {"key": key, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def png(red: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def step_score(store: ObjectStore, tenant: str, step: int) -> StepScore:
    """A score as the scorer leaves it: picture and record in the object store."""
    stored = put(store, keys.score_file(tenant, "job", 1, step, "0.png"), png(step))
    picture = ScoredPicture(case=0, seed=0, **stored)
    score = Score(step=step, suite="tiny", dino=step / 10, ceiling_dino=0.8, cases=CASES, pictures=[picture])
    record = put(store, keys.score_file(tenant, "job", 1, step, "score.json"), score.model_dump_json().encode())
    return StepScore(
        score=score.model_copy(update={"cases": [], "pictures": []}), key=record["key"], sha256=record["sha256"]
    )


@pytest.fixture
def brief(object_store: ObjectStore, request: pytest.FixtureRequest) -> Brief:
    tenant = f"job-files-{request.node.name}"
    photo = InstancePhoto(path="00.png", **put(object_store, f"tenants/{tenant}/photos/0.png", png(255)))
    return Brief(
        job_id="job", tenant_id=tenant, attempt=1, fence=1, base_model="tiny", base_files=[], recipe=RECIPE,
        params=PARAMS.model_copy(update={"scoring": SCORING}), photos=[photo], serving_gpus=0, max_ranks=0,
        first_step_limit_s=1, scores=[step_score(object_store, tenant, step) for step in (0, 4)],
    )  # fmt: skip


def stored(store: ObjectStore, brief: Brief, name: str) -> bytes:
    return store.get(keys.job_report_file(brief.tenant_id, brief.job_id, brief.attempt, name))


class Listener:
    job_id = "job"

    def __init__(self) -> None:
        self.beats: list[Beat] = []

    def beat(self, beat: Beat) -> Desired:
        self.beats.append(beat)
        return Desired.RUN

    @property
    def warnings(self) -> str:
        return "; ".join(beat.warning for beat in self.beats if beat.warning)


def scored(brief: Brief, store: ObjectStore) -> tuple[list[StepScore], Listener]:
    """The scoring stage of an attempt whose steps were all scored by an earlier one."""
    line = Listener()
    work = ScoreWork(brief, store, None, use_gpu=False)
    desk = ScoreDesk(work, line, score=lambda *_: iter(()), report=store_job_report)  # type: ignore[arg-type]
    return score_run(desk), line


def test_steps_stand_side_by_side_with_their_curves(object_store: ObjectStore, brief: Brief) -> None:
    found, line = scored(brief, object_store)
    assert [each.score.step for each in found] == [0, 4]
    assert line.warnings == ""
    report = Report.model_validate_json(stored(object_store, brief, "report.json"))
    assert [(row.subject, row.score.step, row.score.dino) for row in report.rows] == [
        ("sks teapot", 0, 0.0),
        ("sks teapot", 4, 0.4),
    ]
    assert len(report.rows[1].score.pictures) == 1
    page = stored(object_store, brief, "report.html").decode()
    assert "sks teapot, step 4" in page
    assert page.count("<img") == 1 + 2 + 1  # the photo, two pictures, the curves
    for name in ("sheet.png", "curves.png"):
        assert Image.open(io.BytesIO(stored(object_store, brief, name))).width > 100


def test_a_report_that_cannot_be_made_is_a_warning(object_store: ObjectStore, brief: Brief) -> None:
    object_store.delete(brief.scores[1].key)
    found, line = scored(brief, object_store)
    assert [each.score.step for each in found] == [0, 4]
    assert "there is no report on the scores" in line.warnings
