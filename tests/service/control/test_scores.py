"""Scores of jobs: how scoring is resolved, and what drivers say of it: kept once, fenced, shown to the owner."""

import pytest
from control_plane import Driver, both_databases, next_attempt, photo, started

from booth.contract.jobs import Params
from booth.contract.scores import Score, StepScore
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Job
from booth_service.storage import keys

OWN = {"prompts": ["a {0} {1} in the snow", "a red {subject}"], "steps": [0, 4, -1]}


def problems(answer) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(each["field"], each["message"] + " " + each["remedy"]) for each in answer.json()["problems"]]


def scored(plane, user, **options) -> Driver:
    """A job that is scored at steps 0, 4 and 10, its first attempt running."""
    driver = started(plane, user, options={"scoring": OWN, **options})
    driver.beat("training")
    return driver


def step_score(driver: Driver, step: int, number: int | None = None, **figures) -> dict:
    with driver.plane.database.read() as session:
        job = session.get_one(Job, driver.job_id)
    key = keys.score_file(job.tenant_id, job.id, number or driver.number, step, "score.json")
    score = Score(step=step, suite="paper", **{"dino": 0.5, "clip_i": 0.625, "clip_t": 0.25, **figures})
    return StepScore(score=score, key=key, sha256="0" * 64).model_dump(mode="json")


def scores(driver: Driver) -> dict:
    return driver.http.get(f"/v1/jobs/{driver.job_id}/scores").json()


def told(driver: Driver) -> list[str]:
    return [event["message"] for event in driver.events() if event["kind"] == "scores"]


@both_databases
def test_a_job_says_how_it_is_scored_and_its_driver_gets_the_encoders(plane, user, suite):
    driver = scored(plane, user)
    scoring = Params.model_validate(driver.job["params"]).scoring
    assert scoring.steps == [0, 4, 10]
    assert [case.prompt for case in scoring.cases] == ["a sks dog in the snow", "a red sks dog"]
    assert [case.text for case in scoring.cases] == ["a dog in the snow", "a red dog"]
    assert (scoring.class_prompt, scoring.suite, scoring.suite_id) == ("a photo of a dog", "paper", suite)
    assert (scoring.guidance_scale, scoring.num_inference_steps, scoring.num_images) == (4.0, 20, 4)
    brief = driver.call("GET").json()
    assert [file["path"] for file in brief["suite_files"]] == ["encoders.json"]
    assert (brief["scores"], brief["is_last_try"]) == ([], False)


@both_databases
def test_scores_come_back_in_step_order_and_a_repetition_changes_nothing(plane, user, suite):
    driver = scored(plane, user)
    assert scores(driver) == {"scores": [], "selected_step": None}
    last, first = step_score(driver, 10, div=0.125), step_score(driver, 4)
    assert driver.beat("evaluating", scores=[last, first]).status_code == 200
    assert driver.job["status"] == "evaluating"
    events = driver.events()
    driver.beat("evaluating", scores=[first, first])
    assert driver.events() == events
    assert [(score["step"], score["dino"]) for score in scores(driver)["scores"]] == [(4, 0.5), (10, 0.5)]
    assert told(driver) == [
        "Scores of step 10: DINO 0.500, CLIP-I 0.625, CLIP-T 0.250, DIV 0.125.",
        "Scores of step 4: DINO 0.500, CLIP-I 0.625, CLIP-T 0.250.",
    ]


@both_databases
def test_scores_stand_for_the_next_attempt_and_its_own_take_their_place(plane, user, suite, cluster, clock):
    old = scored(plane, user)
    old.beat("evaluating", scores=[step_score(old, 4)])
    old.failed("worker_died")
    new = next_attempt(plane, cluster, clock, old)
    standing = new.call("GET").json()["scores"]
    assert [each["score"]["step"] for each in standing] == [4]
    assert old.beat("evaluating", scores=[step_score(old, 10)]).status_code == 409
    new.beat("training")
    assert new.beat("evaluating", scores=[step_score(new, 4, dino=0.75)]).status_code == 200
    assert [(score["step"], score["dino"]) for score in scores(new)["scores"]] == [(4, 0.75)]


@both_databases
def test_the_last_try_of_a_job_knows_that_it_is(plane, user, suite, cluster, clock):
    driver = scored(plane, user)
    last = []
    for _ in range(plane.settings.max_attempts - 1):
        driver.failed("worker_died")
        driver = next_attempt(plane, cluster, clock, driver)
        last.append(driver.call("GET").json()["is_last_try"])
    assert last == [False, True]


@both_databases
def test_the_selected_step_is_shown_with_job_and_scores(plane, user, suite):
    driver = scored(plane, user, select_checkpoint="fidelity")
    driver.beat("evaluating", scores=[step_score(driver, 4)], selected_step=4)
    assert driver.job["selected_step"] == scores(driver)["selected_step"] == 4
    driver.publish()
    assert (driver.job["status"], driver.job["selected_step"]) == ("succeeded", 4)


def test_a_job_that_does_not_choose_has_no_selected_step(plane, user, suite):
    driver = scored(plane, user)
    assert driver.beat("evaluating", selected_step=4).status_code == 400
    assert driver.job["selected_step"] is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda each: {**each, "key": each["key"].replace("/a1/", "/a2/")},
        lambda each: {**each, "key": each["key"].replace("tenants/", "tenants/x")},
        lambda each: {**each, "key": each["key"].replace("score.json", "000-00.png")},
        lambda each: {**each, "score": {**each["score"], "step": 5}},
        lambda each: {**each, "score": {**each["score"], "suite": "other"}},
        lambda each: {**each, "score": {**each["score"], "cases": [dict(kind="x", prompt="", text="", clip_text="")]}},
    ],
    ids=["attempt", "tenant", "file", "step", "suite", "cases"],
)
def test_a_score_that_is_not_the_attempts_own_is_refused_whole(plane, user, suite, spoil):
    driver = scored(plane, user)
    answer = driver.beat("evaluating", scores=[step_score(driver, 10), spoil(step_score(driver, 4))])
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert scores(driver)["scores"] == []


def test_another_tenant_sees_no_score(plane, user, suite, stranger):
    driver = scored(plane, user)
    assert stranger.http.get(f"/v1/jobs/{driver.job_id}/scores").status_code == 404


def test_a_job_that_asks_for_none_takes_no_score(plane, user, suite):
    driver = started(plane, user)
    assert driver.job["params"]["scoring"] is None
    assert driver.beat("evaluating", scores=[step_score(driver, 10)]).status_code == 400


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"select_checkpoint": "fidelity", "checkpoint_interval_steps": 4}, [0, 4, 8, 10]),
        ({"select_checkpoint": "fidelity", "checkpoint_interval_steps": 10}, [0, 10]),
        ({"select_checkpoint": "fidelity", "scoring": {"steps": [-1, 3, 3]}}, [0, 3, 10]),
        ({"scoring": {"steps": [10, -1, 2]}}, [2, 10]),
        ({"scoring": {}}, [10]),
    ],
)
def test_which_steps_are_scored(plane, user, suite, options, steps):
    job = user.submit(plane, options=options).json()
    assert job["params"]["scoring"]["steps"] == steps
    assert len(job["params"]["scoring"]["cases"]) == 25


def test_a_long_run_scores_every_nth_checkpoint(plane, user, suite):
    options = {"select_checkpoint": "fidelity", "checkpoint_interval_steps": 10}
    steps = user.submit(plane, steps=1000, options=options).json()["params"]["scoring"]["steps"]
    assert len(steps) <= 50
    assert steps[:3] == [0, 30, 60]
    assert steps[-1] == 1000


def test_what_the_owner_says_of_the_subject_takes_the_place_of_token_and_noun(plane, user, suite):
    asked = {**OWN, "phrase": "<it>", "noun": "hound", "unseen": ["red"], "clip_text": "identifier", "seed": 9}
    scoring = Params.model_validate(user.submit(plane, options={"scoring": asked}).json()["params"]).scoring
    assert [case.prompt for case in scoring.cases] == ["a <it> in the snow", "a red <it>"]
    assert [case.text for case in scoring.cases] == ["a hound in the snow", "a red hound"]
    assert [case.clip_text for case in scoring.cases] == [case.prompt for case in scoring.cases]
    assert [case.is_unseen for case in scoring.cases] == [False, True]
    assert (scoring.class_prompt, scoring.seed) == ("a photo of a hound", 9)


@pytest.mark.parametrize(
    ("scoring", "field", "said"),
    [
        ({"suite": "other"}, "suite", "boothctl encoders add other"),
        ({"steps": [11]}, "steps", "up to 10; -1 is the end"),
        ({"steps": []}, "steps", "There is no step to score."),
        ({"prompt_set": "nonsense"}, "prompt_set", "There is no prompt set 'nonsense'."),
        ({"prompts": ["a dog"]}, "prompts", "where the subject stands"),
        ({"prompts": ["a {subject}"], "prompt_set": "live"}, "prompt_set", "Give either"),
        ({"unseen": ["on Mars"]}, "unseen", "No prompt has the unseen label 'on Mars'"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_field(plane, user, suite, scoring, field, said):
    [(place, words)] = problems(user.submit(plane, options={"scoring": scoring}))
    assert place == f"options.scoring.{field}"
    assert said in words


def test_without_encoders_the_refusal_says_how_to_add_them(plane, user):
    [(place, words)] = problems(user.submit(plane, options={"select_checkpoint": "fidelity"}))
    assert place == "options.scoring.suite"
    assert "There is no suite of encoders 'paper'." in words
    assert "boothctl encoders add paper" in words


def test_moments_of_8_bits_have_no_checkpoints_to_score(plane, user, suite):
    [(place, words)] = problems(user.submit(plane, options={"scoring": {}, "optimizer": "adamw_8bit"}))
    assert place == "options.scoring"
    assert "adamw_8bit have no checkpoints" in words


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"options": {"select_checkpoint": "fidelity"}}, "has no choice: step 10 alone is scored"),
        ({"options": {"scoring": {"prompts": [f"a {'dog ' * 12}{{subject}}"]}}}, "the scored prompt 'a dog dog"),
    ],
)
def test_scoring_that_will_disappoint(plane, user, suite, dials, said):
    warnings = user.submit(plane, images=user.put_photos(plane, 3), **dials).json()["warnings"]
    assert [warning for warning in warnings if said in warning]


def test_of_several_subjects_the_first_is_scored_and_that_is_said(plane, user, suite):
    more = [{"class_noun": "cat", "token": "zwx", "images": [user.put(plane, photo(9), "cat.png")]}]
    job = user.submit(plane, more_subjects=more, options={"scoring": OWN}).json()
    assert "scores are of the first subject alone, sks dog" in job["warnings"]


def beside(cluster) -> list[str]:
    return [name for name, program in cluster.programs.items() if program == "booth_service.score_beside"]


def at_work(plane, user, **options) -> Driver:
    """A job that chooses, at a step of its training."""
    driver = scored(plane, user, select_checkpoint="fidelity", **options)
    driver.beat("training", step=0)
    driver.beat("training", step=2)
    return driver


@both_databases
def test_a_choosing_job_is_scored_beside_its_gang_from_its_first_checkpoint_on(plane, user, suite, cluster):
    driver = at_work(plane, user)
    reconciler = Reconciler(plane)
    reconciler.round()
    assert beside(cluster) == []
    driver.beat("training", step=4, checkpoint_key="k")
    for _ in range(3):
        reconciler.round()
    assert beside(cluster) == [f"{driver.job_id}-a1-score"]
    assert cluster.submissions == 2


@pytest.mark.parametrize("options", [{"select_checkpoint": "last"}, {}])
def test_other_jobs_are_scored_after_training_alone(plane, user, suite, cluster, options):
    driver = scored(plane, user, **options)
    driver.beat("training", step=4, checkpoint_key="k")
    driver.beat("training", step=5)
    Reconciler(plane).round()
    assert beside(cluster) == []


@both_databases
def test_what_is_found_beside_the_gang_is_kept_and_ends_the_training(plane, user, suite, cluster, clock):
    driver = at_work(plane, user)
    assert driver.call("GET").json()["is_training"]
    assert driver.call("POST", "/found", fence=1, scores=[step_score(driver, 4)]).status_code == 200
    assert driver.beat("training", step=5).json() == {"desired": "run"}
    assert driver.job["progress"]["step"] == 5
    driver.call("POST", "/found", fence=1, selected_step=4, note="training ends early")
    assert driver.beat("training", step=6).json() == {"desired": "finish"}
    assert [score["step"] for score in scores(driver)["scores"]] == [4]
    assert driver.events()[-1]["message"] == "training ends early"
    assert driver.call("GET").json()["selected_step"] == 4
    assert driver.beat("evaluating").json() == {"desired": "run"}
    assert not driver.call("GET").json()["is_training"]
    driver.failed("worker_died")
    assert driver.call("POST", "/found", fence=1, scores=[step_score(driver, 4)]).status_code == 409


def test_an_owner_who_cancels_is_heard_before_a_choice(plane, user, suite):
    driver = at_work(plane, user)
    driver.call("POST", "/found", fence=1, selected_step=4)
    user.http.post(f"/v1/jobs/{driver.job_id}/cancel")
    assert driver.beat("training", step=6).json() == {"desired": "cancel"}
