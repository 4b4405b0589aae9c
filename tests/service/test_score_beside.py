"""Checkpoints scored while the gang trains: as they come, each once, and the training's end when it only gets worse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from tiny_job import PARAMS, RECIPE

from booth.contract.attempts import Brief, Found
from booth.contract.jobs import PromptCase, Scoring
from booth.contract.scores import Score, StepScore
from booth_service import score_beside
from booth_service.errors import AttemptEnded
from booth_service.scorer import OnPictures, ScoreTask, ScoreWork
from booth_service.scores import ScoredStep
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

SCORING = Scoring(
    steps=[0, 2, 4, 6, 8, 10],
    cases=[PromptCase(kind="own", prompt="a sks teapot", text="a teapot", clip_text="a teapot")],
    class_prompt="a photo of a teapot",
    num_images=3,
    num_class_images=0,
    seed=0,
    guidance_scale=1,
    num_inference_steps=2,
    suite="tiny",
    suite_id="suite-1",
)
CHOOSING = PARAMS.model_copy(
    update={"steps": 10, "scoring": SCORING, "select_checkpoint": "fidelity", "select_patience": 2}
)


@dataclass
class Run:
    """An attempt whose gang stores a checkpoint whenever it is waited for. Stands where the control plane is."""

    store: ObjectStore
    tenant: str
    dinos: dict[int, float]
    params: object = CHOOSING
    ends_after: int = 10
    fails_at: int | None = None
    step: int = 0
    found_: list[Found] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)

    def brief(self) -> Brief:
        return Brief(
            job_id="job",
            tenant_id=self.tenant,
            attempt=1,
            fence=1,
            params=self.params,
            photos=[],
            base_model="tiny",
            base_files=[],
            recipe=RECIPE,
            serving_gpus=0,
            max_ranks=0,
            first_step_limit_s=60,
            is_training=self.step <= self.ends_after,
            selected_step=next((each.selected_step for each in self.found_ if each.selected_step), None),
        )

    def found(self, found: Found) -> None:
        self.found_.append(found)

    def train_on(self, _pause_s: float) -> None:
        self.step += 2
        self.store.put(keys.checkpoint_file(self.tenant, "job", 1, self.step, "manifest.json"), b"{}")

    def score(self, work: ScoreWork, tasks: Sequence[ScoreTask], on_pictures: OnPictures) -> Iterator[ScoredStep]:
        for task in tasks:
            self.scored.append(task.step)
            if task.step == self.fails_at:
                yield ScoredStep(task.step, None, "damaged")
                continue
            score = Score(step=task.step, suite="tiny", dino=self.dinos[task.step], clip_t=0.3, ceiling_dino=0.8)
            yield ScoredStep(task.step, StepScore(score=score, key="k", sha256="0" * 64))

    def follow(self) -> None:
        work = ScoreWork(self.brief(), self.store, None, False)
        score_beside.run(self, work, self.score, self.train_on)  # type: ignore[arg-type]

    @property
    def told(self) -> list[int]:
        return [each.score.step for found in self.found_ for each in found.scores]


RISING = {0: 0.2, 2: 0.3, 4: 0.4, 6: 0.5, 8: 0.6, 10: 0.7}
FALLING = {0: 0.2, 2: 0.3, 4: 0.7, 6: 0.5, 8: 0.4, 10: 0.3}


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    return f"t-{request.node.name}"


def test_each_checkpoint_is_scored_once_as_it_comes(object_store: ObjectStore, tenant: str) -> None:
    run = Run(object_store, tenant, RISING)
    run.follow()
    assert run.scored == run.told == [0, 2, 4, 6, 8, 10]
    assert [found.selected_step for found in run.found_] == [None] * 6


def test_a_curve_that_only_gets_worse_ends_the_training_and_names_the_best_step(
    object_store: ObjectStore, tenant: str
) -> None:
    run = Run(object_store, tenant, FALLING)
    run.follow()
    assert run.scored == [0, 2, 4, 6, 8]
    assert (run.found_[-1].selected_step, run.step) == (4, 8)
    assert run.found_[-1].note is not None
    assert run.found_[-1].note.startswith("training ends early: the trade-off was below its best at 2 scored steps")


def test_without_patience_the_training_is_left_alone(object_store: ObjectStore, tenant: str) -> None:
    run = Run(object_store, tenant, FALLING, CHOOSING.model_copy(update={"select_patience": 0}))
    run.follow()
    assert run.told == [0, 2, 4, 6, 8, 10]
    assert run.brief().selected_step is None


def test_a_worse_end_of_the_run_ends_nothing(object_store: ObjectStore, tenant: str) -> None:
    """What is chosen then is chosen after training, when every score is there."""
    run = Run(object_store, tenant, {**RISING, 8: 0.45, 10: 0.4})
    run.follow()
    assert run.told == [0, 2, 4, 6, 8, 10]
    assert run.brief().selected_step is None


def test_it_ends_with_the_training(object_store: ObjectStore, tenant: str) -> None:
    run = Run(object_store, tenant, RISING, ends_after=4)
    run.follow()
    assert run.scored == [0, 2, 4]


def test_a_step_that_fails_is_left_to_the_stage_after_training(object_store: ObjectStore, tenant: str) -> None:
    run = Run(object_store, tenant, RISING, fails_at=4)
    run.follow()
    assert run.scored == [0, 2, 4, 6, 8, 10]
    assert run.told == [0, 2, 6, 8, 10]


def test_an_attempt_that_is_over_trains_no_more() -> None:
    class Over:
        def brief(self) -> Brief:
            raise AttemptEnded("overtaken")

    assert not score_beside.is_training(Over())  # type: ignore[arg-type]
