"""The scoring stage of an attempt: what is told and kept, and that nothing in it costs a job its model."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from tiny_job import PARAMS, RECIPE

from booth.contract.attempts import Beat, Brief
from booth.contract.jobs import PromptCase, Scoring
from booth.contract.scores import Score, StepScore
from booth.contract.states import Desired, JobState
from booth_service.errors import AttemptEnded, WorkerDied
from booth_service.score_stage import ScoreDesk, choose_step, score_run
from booth_service.scorer import OnPictures, ScoreTask, ScoreWork
from booth_service.scores import ScoredStep
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

SCORING = Scoring(
    steps=[0, 2, 4],
    cases=[PromptCase(kind="own", prompt="a sks teapot", text="a teapot", clip_text="a teapot")],
    class_prompt="a photo of a teapot",
    num_images=3,
    num_class_images=1,
    seed=0,
    guidance_scale=1,
    num_inference_steps=2,
    suite="tiny",
    suite_id="suite-1",
)
PARAMS_SCORED = PARAMS.model_copy(update={"steps": 4, "scoring": SCORING, "select_checkpoint": "fidelity"})
FIGURES = {0: (0.2, 0.3), 2: (0.6, 0.3), 4: (0.7, 0.1)}


@dataclass
class Listener:
    """Stands where the line to the control plane is, and keeps the beats."""

    beats: list[Beat] = field(default_factory=list)
    desired: Desired = Desired.RUN
    job_id: str = "job"

    def beat(self, beat: Beat) -> Desired:
        self.beats.append(beat)
        return self.desired

    @property
    def warnings(self) -> str:
        return "; ".join(beat.warning for beat in self.beats if beat.warning)

    @property
    def notes(self) -> str:
        return "; ".join(beat.note for beat in self.beats if beat.note)


@dataclass
class Hand:
    """Scores by a table. `fails_at` a step has a problem of its own, `dies_at` one everything ends."""

    fails_at: int | None = None
    dies_at: int | None = None
    asked: list[int] = field(default_factory=list)

    def __call__(self, work: ScoreWork, tasks: Sequence[ScoreTask], on_pictures: OnPictures) -> Iterator[ScoredStep]:
        for task in tasks:
            self.asked.append(task.step)
            if task.step == self.dies_at:
                raise WorkerDied("the actor was killed")
            on_pictures(4)
            if task.step == self.fails_at:
                yield ScoredStep(task.step, None, "DamagedObject: rank-0 is damaged")
            else:
                yield ScoredStep(task.step, step_score(task.step))


def step_score(step: int) -> StepScore:
    dino, clip_t = FIGURES[step]
    score = Score(step=step, suite="tiny", dino=dino, clip_t=clip_t, ceiling_dino=0.8)
    return StepScore(score=score, key=f"scores/{step}", sha256=hashlib.sha256(b"").hexdigest())


@pytest.fixture
def desk(object_store: ObjectStore, request: pytest.FixtureRequest) -> ScoreDesk:
    """A desk whose run has left the checkpoints of steps 2 and 4."""
    brief = Brief(
        job_id="job",
        tenant_id=f"t-{request.node.name}",
        attempt=1,
        fence=1,
        params=PARAMS_SCORED,
        photos=[],
        base_model="tiny",
        base_files=[],
        recipe=RECIPE,
        serving_gpus=0,
        max_ranks=0,
        first_step_limit_s=60,
    )
    for step in (2, 4):
        object_store.put(keys.checkpoint_file(brief.tenant_id, "job", 1, step, "manifest.json"), b"{}")
    return ScoreDesk(ScoreWork(brief, object_store, None, False), Listener(), Hand())  # type: ignore[arg-type]


def changed(desk: ScoreDesk, **brief: object) -> ScoreDesk:
    return replace(desk, work=replace(desk.work, brief=desk.work.brief.model_copy(update=brief)))


def brought(desk: ScoreDesk) -> list[int]:
    return [each.score.step for beat in desk.line.beats for each in beat.scores]


def test_every_step_is_scored_told_and_brought_once(desk: ScoreDesk) -> None:
    found = score_run(desk)
    assert found == [step_score(step) for step in (0, 2, 4)]
    assert brought(desk) == [0, 2, 4]
    line = desk.line
    assert {beat.state for beat in line.beats} == {JobState.EVALUATING}
    assert line.notes.startswith("scoring steps 0, 2, 4: 12 pictures of 2 denoising steps, beside what training takes")
    assert "at the pace of its first 4 pictures" in line.notes
    assert line.beats[-1].progress.step == line.beats[-1].progress.total_steps == 12
    assert line.warnings == ""


def test_scores_that_stand_are_not_made_again(desk: ScoreDesk) -> None:
    resumed = changed(desk, attempt=2, scores=[step_score(2), step_score(0)])
    assert score_run(resumed) == [step_score(step) for step in (0, 2, 4)]
    assert resumed.score.asked == brought(resumed) == [4]
    again = changed(desk, attempt=3, scores=[step_score(step) for step in (0, 2, 4)])
    again = replace(again, line=Listener())
    assert len(score_run(again)) == 3
    assert again.line.notes == ""


def test_a_step_that_fails_is_a_warning_and_the_others_go_on(desk: ScoreDesk) -> None:
    failing = replace(desk, score=Hand(fails_at=2))
    assert [each.score.step for each in score_run(failing)] == [0, 4]
    assert "step 2 was not scored: DamagedObject: rank-0 is damaged" in desk.line.warnings


def test_a_pool_that_dies_is_a_warning_with_the_steps_that_it_leaves(desk: ScoreDesk) -> None:
    dying = replace(desk, score=Hand(dies_at=2))
    assert [each.score.step for each in score_run(dying)] == [0]
    assert "steps 2, 4 were not scored: the actor was killed" in desk.line.warnings


def test_a_checkpoint_that_is_gone_is_a_warning(desk: ScoreDesk) -> None:
    desk.work.store.delete(keys.checkpoint_file(desk.work.brief.tenant_id, "job", 1, 2, "manifest.json"))
    assert [each.score.step for each in score_run(desk)] == [0, 4]
    assert "step 2 was not scored: no checkpoint is there" in desk.line.warnings


def test_the_last_try_of_a_job_risks_nothing(desk: ScoreDesk) -> None:
    last = changed(desk, is_last_try=True, scores=[step_score(0)])
    assert [each.score.step for each in score_run(last)] == [0]
    assert last.score.asked == []
    assert "steps 2, 4 were not scored: this was the job's last try" in desk.line.warnings


def test_an_owner_who_wants_no_more_ends_it(desk: ScoreDesk) -> None:
    desk.line.desired = Desired.CANCEL

    def slow(*_: object) -> Iterator[ScoredStep]:
        while not desk.line.beats:
            pass
        while True:
            yield ScoredStep(0, step_score(0))

    with pytest.raises(AttemptEnded):
        score_run(replace(desk, score=slow))


def test_a_job_that_is_not_scored_is_left_alone(desk: ScoreDesk) -> None:
    plain = changed(desk, params=PARAMS)
    assert score_run(plain) == []
    assert desk.line.beats == []


def test_the_best_step_is_told_with_its_reason(desk: ScoreDesk) -> None:
    """Step 2: 2 * (2/3 * 1) / (2/3 + 1) = 0.8; step 4: subject 5/6, prompt 1/3, so 0.476."""
    assert choose_step(desk, score_run(desk)) == 2
    assert "step 2 is published: the best trade-off 0.800" in desk.line.notes
    assert [beat.selected_step for beat in desk.line.beats if beat.selected_step is not None][-1] == 2


def test_without_scores_the_end_is_published_with_a_warning(desk: ScoreDesk) -> None:
    assert choose_step(desk, []) == 4
    assert "the end of the run is published: no step of the run has a score" in desk.line.warnings
