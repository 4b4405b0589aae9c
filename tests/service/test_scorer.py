"""Weights of a step, drawn and scored: the same whatever ranks stored them, and no longer the base's."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from loop import Case, layout, run
from PIL import Image
from safetensors.torch import load_file
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE
from tiny_suite import write_tiny_suite
from world import SUBJECTS, render

from booth.contract.attempts import Brief, InstancePhoto, StoredFile
from booth.contract.jobs import Params, PromptCase, Scoring
from booth.contract.scores import Score, StepScore
from booth_service.scorer import Scorer, ScoreTask, ScoreWork
from booth_service.scores import ScoredStep, checkpoint_key, score_here, tasks_of
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore
from booth_service.training.checkpoint import CheckpointManifest

pytestmark = [pytest.mark.s3, pytest.mark.ranks]

CONTEXTS = ["in the jungle", "on the beach"]
CASES = [
    PromptCase(kind="own", prompt=f"a sks teapot {where}", text=f"a teapot {where}", clip_text=f"a teapot {where}")
    for where in CONTEXTS
]
SCORING = Scoring(
    steps=[0, 1, 2],
    cases=CASES,
    class_prompt="a photo of a teapot",
    num_images=2,
    num_class_images=3,
    seed=5,
    guidance_scale=3,
    num_inference_steps=2,
    suite="tiny",
    suite_id="suite-1",
)
PLAIN = PARAMS.model_copy(update={"steps": 2, "scoring": SCORING, "learning_rate": 5e-2, "lr_warmup_steps": 0})
AVERAGED = PLAIN.model_copy(update={"ema_decay": 0.5})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on one rank, with and without an average; each stored again, as they are, by two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    outcomes = run(
        [
            Case("plain", base, layout(1, 0), PLAIN),
            Case("averaged", base, layout(1, 0), AVERAGED),
            Case("plain by two", base, layout(2, 1), PLAIN, resume="plain"),
            Case("averaged by two", base, layout(2, 1), AVERAGED, resume="averaged"),
        ],
        folder,
    )
    assert all(outcome.error is None for outcome in outcomes.values())
    return folder


@pytest.fixture(scope="module")
def brief(base: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Brief:
    suite = write_tiny_suite(tmp_path_factory.mktemp("suite") / "tiny")
    return Brief(
        job_id="job-scorer",
        tenant_id="tenant",
        attempt=1,
        fence=1,
        params=PLAIN,
        photos=[photo(object_store, k, image) for k, image in enumerate(map(render, SUBJECTS[0].scenes()))][:3],
        base_model="tiny",
        base_files=store_base(object_store, base),
        recipe=RECIPE,
        serving_gpus=0,
        max_ranks=1,
        first_step_limit_s=60,
        suite_files=[put(object_store, "suite", path, suite) for path in sorted(suite.rglob("*")) if path.is_file()],
    )


@pytest.fixture(scope="module")
def work(brief: Brief, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> ScoreWork:
    return ScoreWork(brief, object_store, str(tmp_path_factory.mktemp("scratch")), use_gpu=False)


def put(store: ObjectStore, prefix: str, path: Path, root: Path) -> StoredFile:
    body, name = path.read_bytes(), path.relative_to(root).as_posix()
    store.put(f"scorer/{prefix}/{name}", body)
    digest = hashlib.sha256(body).hexdigest()
    return StoredFile(path=name, key=f"scorer/{prefix}/{name}", bytes=len(body), sha256=digest)


def photo(store: ObjectStore, number: int, image: Image.Image) -> InstancePhoto:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    key = f"scorer/photo-{number}.png"
    store.put(key, buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return InstancePhoto(path=key, key=key, bytes=buffer.tell(), sha256=digest)


def store_checkpoint(store: ObjectStore, folder: Path, job_id: str, step: int, number: int = 1) -> str:
    """A checkpoint of a folder, as an attempt of the job would have stored it."""
    manifest = CheckpointManifest.model_validate_json((folder / "manifest.json").read_bytes())
    for record in manifest.files:
        name = Path(record.key).name
        body = Path(record.key).read_bytes()
        record.key = keys.checkpoint_file("tenant", job_id, number, step, name)
        store.put(record.key, body)
    key = keys.checkpoint_file("tenant", job_id, number, step, "manifest.json")
    store.put(key, manifest.model_dump_json().encode())
    return key


def of_params(work: ScoreWork, job_id: str, params: Params) -> ScoreWork:
    return replace(work, brief=work.brief.model_copy(update={"job_id": job_id, "params": params}))


def whole(work: ScoreWork, scored: StepScore) -> Score:
    return Score.model_validate_json(work.store.get(scored.key, scored.sha256))


def scored(work: ScoreWork, task: ScoreTask) -> Score:
    return whole(work, Scorer(work).score(task))


def without_keys(score: Score) -> dict:
    dumped = score.model_dump()
    for picture in [*dumped["pictures"], *dumped["class_pictures"]]:
        del picture["key"]
    return dumped


@pytest.mark.parametrize(("name", "params"), [("plain", PLAIN), ("averaged", AVERAGED)])
def test_pictures_and_scores_do_not_depend_on_the_ranks_that_stored_the_weights(runs, work, name, params) -> None:
    found = []
    for ranks, at in (("one", f"{name}/checkpoint-2"), ("two", f"{name} by two/restored")):
        work_of_ranks = of_params(work, f"job-{name}-{ranks}", params)
        key = store_checkpoint(work.store, runs / at, f"job-{name}-{ranks}", 2)
        found.append(scored(work_of_ranks, ScoreTask(2, key)))
    assert without_keys(found[0]) == without_keys(found[1])
    score = found[0]
    assert [(picture.case, picture.seed) for picture in score.pictures] == [(0, 5), (0, 6), (1, 5), (1, 6)]
    assert [picture.seed for picture in score.class_pictures] == [5, 6, 7]
    for figure in ("dino", "clip_i", "clip_t", "pres", "div", "ceiling_dino"):
        assert isinstance(getattr(score, figure), float), figure
    for picture in [*score.pictures, *score.class_pictures]:
        assert Image.open(io.BytesIO(work.store.get(picture.key, picture.sha256))).size == (32, 32)


@pytest.mark.parametrize(("name", "params"), [("plain", PLAIN), ("averaged", AVERAGED)])
def test_what_is_drawn_with_is_what_the_run_ended_with(runs, base, work, name, params) -> None:
    """Against diffusers' own pipeline with the run's final weights, the average where there is one."""
    job = f"job-{name}-drawn"
    key = store_checkpoint(work.store, runs / name / "checkpoint-2", job, 2)
    score = scored(of_params(work, job, params), ScoreTask(2, key))
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for folder in ("unet", "text_encoder"):
        own = {k.removeprefix(f"{folder}."): v for k, v in load_file(runs / name / "weights.safetensors").items()}
        own = {k: v for k, v in own.items() if k in getattr(pipeline, folder).state_dict()}
        getattr(pipeline, folder).load_state_dict(own, strict=False)
    image = pipeline(
        [CASES[0].prompt] * RECIPE.class_block_size,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 6)],
        guidance_scale=3,
        num_inference_steps=2,
        height=32,
        width=32,
    ).images[0]
    stored = Image.open(io.BytesIO(work.store.get(score.pictures[0].key)))
    assert image.tobytes() == stored.tobytes()


def test_the_frozen_base_draws_the_noun_and_comes_back_after_other_weights(runs, work) -> None:
    job = "job-base"
    key = store_checkpoint(work.store, runs / "plain" / "checkpoint-2", job, 2)
    scorer = Scorer(of_params(work, job, PLAIN))
    first, trained, again = (
        whole(scorer.work, scorer.score(task)) for task in (ScoreTask(0, None), ScoreTask(2, key), ScoreTask(0, None))
    )
    assert first == again
    assert {p.sha256 for p in first.pictures}.isdisjoint(p.sha256 for p in trained.pictures)
    noun = scored(
        of_params(work, job, PLAIN.model_copy(update={"scoring": SCORING.model_copy(update={"cases": nouns()})})),
        ScoreTask(0, None),
    )
    assert [p.sha256 for p in noun.pictures] == [p.sha256 for p in first.pictures]


def nouns() -> list[PromptCase]:
    return [case.model_copy(update={"prompt": case.text}) for case in CASES]


def test_steps_that_stand_are_left_alone_and_missing_ones_are_named(runs, work) -> None:
    job = "job-tasks"
    key = store_checkpoint(work.store, runs / "plain" / "checkpoint-2", job, 2)
    resumed = of_params(work, job, PLAIN).brief.model_copy(update={"attempt": 3})
    assert tasks_of(resumed, work.store) == ([ScoreTask(0, None), ScoreTask(2, key)], [1])
    newer = store_checkpoint(work.store, runs / "plain" / "checkpoint-2", job, 2, number=2)
    assert checkpoint_key(resumed, work.store, 2) == newer
    floor = StepScore(score=Score(step=0, suite="tiny"), key="k", sha256="0" * 64)
    resumed = resumed.model_copy(update={"scores": [floor]})
    assert tasks_of(resumed, work.store) == ([ScoreTask(2, newer)], [1])


def test_a_damaged_checkpoint_is_told_and_the_others_are_scored(runs, work) -> None:
    job = "job-damaged"
    key = store_checkpoint(work.store, runs / "plain" / "checkpoint-2", job, 2)
    manifest = CheckpointManifest.model_validate_json(work.store.get(key))
    weights = next(record for record in manifest.files if record.kind == "fp32")
    body = bytearray(work.store.get(weights.key))
    body[-1] ^= 1
    work.store.put(weights.key, bytes(body))
    drawn: list[int] = []
    tasks = [ScoreTask(2, key), ScoreTask(0, None)]
    damaged, floor = score_here(of_params(work, job, PLAIN), tasks, drawn.append)
    assert damaged.score is None
    assert weights.key in damaged.problem
    assert floor.score is not None
    assert sum(drawn) == 2 * 2 + 3

    incomplete = manifest.model_copy(update={"files": [r for r in manifest.files if r.kind != "fp32"]})
    work.store.put(key, incomplete.model_dump_json().encode())
    (lacking,) = score_here(of_params(work, job, PLAIN), tasks[:1], drawn.append)
    assert "does not hold all of fp32" in lacking.problem


def test_a_suite_that_is_not_there_is_told_for_each_step(work) -> None:
    without = replace(work, brief=work.brief.model_copy(update={"suite_files": []}))
    (told,) = score_here(without, [ScoreTask(0, None)], lambda count: None)
    assert isinstance(told, ScoredStep)
    assert told.score is None
    assert "encoders.json" in told.problem
