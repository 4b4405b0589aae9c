"""Evaluations over the API and through the reconciler, on both databases: admission, arms, life cycle, report, end."""

import hashlib
import secrets
from dataclasses import dataclass

import httpx2
import pytest
from control_plane import RECIPE, Driver, User, a_user, both_databases, photo, started

from booth.contract.attempts import StoredFile
from booth.contract.evaluation import EvaluationBrief, Report
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import EncoderSuite, Evaluation, Model, new_id
from booth_service.control.sweep import sweep
from booth_service.settings import attempt_token
from booth_service.storage import keys

PROMPTS = ["a {0} {1} in the snow", "a {subject} on the beach"]


def submit(user: User, model: str, key: str | None = None, **spec) -> httpx2.Response:
    body = {"model_id": model, "prompts": PROMPTS, "num_images": 2, "num_class_images": 3, "seed": 5, **spec}
    headers = {"Idempotency-Key": key or secrets.token_hex(4)}
    return user.http.post("/v1/evaluations", json={k: v for k, v in body.items() if v is not None}, headers=headers)


def refused(answer: httpx2.Response) -> dict:
    """The one bad field that the answer names."""
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["problems"]
    assert problem["remedy"]
    return problem


@dataclass
class Running:
    """What an evaluation's driver does, over the driver's own API; `record` is what its owner sees."""

    plane: Plane
    user: User
    id: str
    number: int = 1

    @property
    def record(self) -> dict:
        return self.user.http.get(f"/v1/evaluations/{self.id}").json()

    @property
    def ray_job(self) -> str:
        return f"{self.id}-a{self.number}"

    def call(self, method: str, path: str = "", **body) -> httpx2.Response:
        token = attempt_token(self.plane.settings.stack_secret, self.id, self.number)
        headers = {"Authorization": f"Bearer {token}"}
        url = f"/internal/runs/{self.id}/{self.number}{path}"
        return self.user.http.request(
            method, url, json={"fence": self.number, **body} if body else None, headers=headers
        )

    def brief(self) -> EvaluationBrief:
        return EvaluationBrief.model_validate_json(self.call("GET").content)

    def beat(self, step: int, phase: str = "drawing") -> httpx2.Response:
        return self.call("POST", "/beat", state="preparing", progress={"phase": phase, "step": step})

    def failed(self, reason: str) -> httpx2.Response:
        return self.call("POST", "/failed", reason=reason, detail="what happened")

    def report(self, body: bytes | None = None) -> httpx2.Response:
        """A report is stored and told of, as the driver does."""
        body = Report(title="t", rows=[]).model_dump_json().encode() if body is None else body
        prefix = keys.evaluation(self.user.tenant_id, self.id)
        key = keys.report_file(prefix, self.number, "report.json")
        self.plane.store.put(key, body)
        self.plane.store.put(keys.report_file(prefix, self.number, "report.html"), b"<html>")
        return self.call("POST", "/done", manifest_key=key, manifest_sha256=hashlib.sha256(body).hexdigest())


def running(plane: Plane, user: User, model: str, **spec) -> Running:
    answer = submit(user, model, **spec)
    assert answer.status_code == 202, answer.text
    Reconciler(plane).round()
    return Running(plane, user, answer.json()["id"])


def trained(plane: Plane, user: User, cluster, **dials) -> Driver:
    """A job that is over, with its model."""
    driver = started(plane, user, images=user.put_photos(plane, 2), **dials)
    driver.publish()
    cluster.jobs[driver.ray_job] = RayStatus.SUCCEEDED
    Reconciler(plane).round()
    return driver


@pytest.fixture
def suite(plane) -> str:
    """A registered suite of encoders."""
    files = [StoredFile(path="encoders.json", key="base-models/blobs/x", bytes=2, sha256="0" * 64)]
    with plane.database.write() as session:
        row = EncoderSuite(
            id=new_id("enc"),
            name="paper",
            spec={},
            files=[file.model_dump() for file in files],
            source="a test",
            created_at=plane.now(),
        )
        session.add(row)
        return row.id


@pytest.fixture
def job(plane, user, cluster, suite) -> Driver:
    return trained(plane, user, cluster)


@pytest.fixture
def model(job) -> str:
    return job.job["model_id"]


@both_databases
def test_the_whole_life_of_an_evaluation(plane, user, cluster, job, model):
    evaluation = running(plane, user, model, description="a brown dog with a torn ear")
    assert cluster.programs[evaluation.ray_job] == Evaluation.program
    brief = evaluation.brief()
    assert [(arm.name, arm.kind, arm.step) for arm in brief.arms] == [
        ("sks dog", "model", 10),
        ("frozen base", "base", 0),
        ("frozen base, described", "described", 0),
    ]
    ours, base, described = brief.arms
    assert [case.prompt for case in ours.cases] == ["a sks dog in the snow", "a sks dog on the beach"]
    assert [case.prompt for case in base.cases] == ["a dog in the snow", "a dog on the beach"]
    assert [case.prompt for case in described.cases] == [
        "a brown dog with a torn ear in the snow",
        "a brown dog with a torn ear on the beach",
    ]
    assert {case.clip_text for arm in brief.arms for case in arm.cases} == {"a dog in the snow", "a dog on the beach"}
    assert {arm.class_prompt for arm in brief.arms} == {"a photo of a dog"}
    with plane.database.read() as session:
        published = session.get_one(Model, model)
    assert ours.request.model.manifest_sha256 == published.manifest_sha256
    assert (base.request.model.manifest_key, described.request.model) == (None, base.request.model)
    assert (base.request.guidance_scale, base.request.num_inference_steps) == (4.0, 20)
    assert (base.request.width, base.request.height, brief.block_size) == (64, 64, 4)
    assert brief.total == evaluation.record["total"] == (4 + 3) + (4 + 3) + 4
    assert [each.path for each in brief.photos] == ["00.png", "01.png"]
    assert [each.path for each in brief.suite_files] == ["encoders.json"]
    assert not brief.is_unseen_told

    assert evaluation.beat(7).json() == {"desired": "run"}
    assert (evaluation.record["status"], evaluation.record["done"]) == ("running", 7)
    path = f"/v1/evaluations/{evaluation.id}/report"
    assert user.http.get(path).status_code == 409
    evaluation.beat(3, phase="encoding")
    assert evaluation.record["status_detail"] == "Encoding: 3 of 18 pictures."
    assert evaluation.record["done"] == 18
    evaluation.beat(1, phase="reporting")
    assert evaluation.record["status_detail"] == "Making the report."
    assert [evaluation.report().status_code for _ in range(2)] == [200, 200]
    assert evaluation.record["status"] == "succeeded"
    files = user.http.get(path).json()["files"]
    assert [each["name"] for each in files] == ["report.json", "report.html"]
    assert httpx2.get(files[1]["url"], trust_env=False).content == b"<html>"
    assert user.http.get(f"/v1/jobs/{job.job_id}/report").json()["files"][0]["name"] == "report.json"


@both_databases
def test_one_key_makes_one_evaluation(plane, user, model):
    first, again = submit(user, model, key="k"), submit(user, model, key="k")
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    other = submit(user, model, key="k", seed=6)
    assert (other.status_code, other.json()["problems"][0]["field"]) == (422, "Idempotency-Key")
    assert len(user.http.get("/v1/evaluations").json()["evaluations"]) == 1
    user.http.delete(f"/v1/evaluations/{first.json()['id']}")
    assert submit(user, model, key="k").status_code == 409


def test_a_set_by_name_and_the_recipes_own(plane, user, model):
    record = submit(user, model, prompts=None, prompt_set="art").json()
    assert record["settings"]["templates"][0] == "a painting of a {0} {1} in the style of Vincent van Gogh"
    assert len(submit(user, model, prompts=None).json()["settings"]["templates"]) == 25
    settings = submit(user, model, guidance_scale=2.0, num_inference_steps=7).json()["settings"]
    assert (settings["guidance_scale"], settings["num_inference_steps"]) == (2.0, 7)


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({"prompts": ["a dog in the snow"]}, "prompts.0", "nowhere where the subject stands"),
        ({"prompts": [PROMPTS[0], "a {token} dog"]}, "prompts.1", "'{token}'"),
        ({"prompts": ["a {0} \x07"]}, "prompts.0", "control characters"),
        ({"prompts": None, "prompt_set": "nonsense"}, "prompt_set", "'nonsense'"),
        ({"prompt_set": "art"}, "prompt_set", "prompts are given"),
        ({"unseen": ["in the sea"]}, "unseen.0", "No prompt has this label"),
        ({"description": "a \x00 dog"}, "description", "control characters"),
        ({"suite": "none"}, "suite", "no suite of encoders 'none'"),
        ({"subject": 1}, "model_id", "has 1 subject"),
        ({"num_images": 0}, "num_images", "greater than"),
        ({"edit": 1}, "edit", "not permitted"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(user, model, spec, field, said):
    problem = refused(submit(user, model, **spec))
    assert (problem["field"], said in problem["message"]) == (field, True)
    assert user.http.get("/v1/evaluations").json()["evaluations"] == []


def test_a_suite_that_is_missing_is_named_with_the_command_that_adds_it(plane, user, cluster):
    model = trained(plane, user, cluster).job["model_id"]
    problem = refused(submit(user, model))
    assert "no suite of encoders 'paper'" in problem["message"]
    assert "boothctl encoders add paper" in problem["remedy"]


def test_models_that_are_not_ones_own_or_gone_are_not_found(plane, user, model):
    with a_user(plane) as stranger:
        assert submit(stranger, model).status_code == 404
        mine = submit(user, model).json()["id"]
        assert stranger.http.get(f"/v1/evaluations/{mine}").status_code == 404
    assert submit(user, model, compare=["model-none"]).status_code == 404
    user.http.delete(f"/v1/models/{model}")
    assert submit(user, model).status_code == 404


def test_a_model_whose_photos_are_gone_is_refused(plane, user, job, model):
    plane.store.delete(keys.photo(user.tenant_id, hashlib.sha256(photo(seed=1)).hexdigest()))
    problem = refused(submit(user, model))
    assert (problem["field"], "photos 01.png are gone" in problem["message"]) == ("model_id", True)


def test_other_models_of_the_subject_stand_beside_it(plane, user, cluster, model):
    other = trained(plane, user, cluster, token="zwx", class_noun="cat").job["model_id"]
    evaluation = running(plane, user, model, compare=[other])
    ours, theirs, _ = evaluation.brief().arms
    assert (theirs.name, theirs.cases[0].prompt) == ("zwx cat", "a zwx cat in the snow")
    assert (theirs.cases[0].clip_text, theirs.class_prompt) == ("a dog in the snow", "a photo of a dog")
    assert ours.request.model.model_id != theirs.request.model.model_id
    assert refused(submit(user, model, compare=[model]))["message"] == "It is named twice."
    evaluation.failed("cannot_score")
    cluster.jobs[evaluation.ray_job] = RayStatus.SUCCEEDED
    Reconciler(plane).round()
    told = running(plane, user, model, compare=[other], clip_text="identifier").brief()
    assert [arm.cases[0].clip_text for arm in told.arms] == [
        "a sks dog in the snow",
        "a zwx cat in the snow",
        "a dog in the snow",
    ]


def test_captions_tell_which_contexts_no_photo_shows(plane, user, cluster, suite):
    photos = [{**each, "caption": "a photo of sks dog in the snow"} for each in user.put_photos(plane, 2)]
    driver = started(plane, user, images=photos)
    driver.publish()
    cluster.jobs[driver.ray_job] = RayStatus.SUCCEEDED
    Reconciler(plane).round()
    brief = running(plane, user, driver.job["model_id"]).brief()
    assert brief.is_unseen_told
    assert [case.is_unseen for case in brief.arms[0].cases] == [False, True]
    assert [case.is_unseen for case in brief.arms[1].cases] == [False, True]


@pytest.mark.parametrize("gone", ["model", "compared"])
def test_a_model_deleted_meanwhile_ends_it(plane, user, cluster, model, gone):
    other = trained(plane, user, cluster).job["model_id"]
    evaluation = running(plane, user, model, compare=[other])
    evaluation.beat(1)
    user.http.delete(f"/v1/models/{model if gone == 'model' else other}")
    reconciler = Reconciler(plane)
    reconciler.round()
    assert evaluation.beat(2).json() == {"desired": "cancel"}
    evaluation.failed("cancelled")
    assert (evaluation.record["status"], evaluation.record["error"]["reason"]) == ("failed", "model_deleted")
    waiting = submit(user, model if gone != "model" else other, compare=[]).json()["id"]
    assert user.http.get(f"/v1/evaluations/{waiting}").json()["status"] == "queued"


def test_one_that_cannot_be_scored_fails_at_once_with_words_of_its_own(plane, user, model):
    evaluation = running(plane, user, model)
    evaluation.failed("cannot_score")
    error = evaluation.record["error"]
    assert (evaluation.record["status"], error["message"]) == ("failed", "The pictures cannot be scored.")
    path = f"/v1/evaluations/{evaluation.id}/report"
    assert user.http.get(path).json()["title"].endswith("is failed, and has no report.")


def test_encoding_counts_as_progress(plane, user, cluster, clock, model):
    evaluation = running(plane, user, model)
    for step in range(plane.settings.max_attempts + 2):
        evaluation.beat(step, phase="encoding")
        evaluation.beat(step + 1, phase="encoding")
        evaluation.failed("worker_died")
        assert evaluation.record["status"] == "queued"
        cluster.jobs[evaluation.ray_job] = RayStatus.FAILED
        Reconciler(plane).round()
        clock.advance(60)
        Reconciler(plane).round()
        evaluation = Running(plane, user, evaluation.id, evaluation.number + 1)


def test_it_is_stopped_when_encoding_stands_still(plane, user, cluster, clock, model):
    evaluation = running(plane, user, model)
    evaluation.beat(18)
    reconciler = Reconciler(plane)
    for step in (0, 4, 8):
        clock.advance(plane.settings.no_progress_limit_s - 10)
        evaluation.beat(step, phase="encoding")
        reconciler.round()
        assert cluster.jobs[evaluation.ray_job] is RayStatus.RUNNING
    for _ in range(2):
        clock.advance(plane.settings.no_progress_limit_s / 2 + 10)
        evaluation.beat(8, phase="encoding")
        reconciler.round()
    assert cluster.jobs[evaluation.ray_job] is RayStatus.STOPPED


def test_what_is_no_report_is_not_taken(plane, user, model):
    evaluation = running(plane, user, model)
    evaluation.beat(1)
    assert evaluation.report(b"{}").status_code >= 500
    assert evaluation.record["status"] == "running"


def test_cancelled_and_deleted_ones(plane, user, cluster, model):
    evaluation = running(plane, user, model)
    assert user.http.post(f"/v1/evaluations/{evaluation.id}/cancel").status_code == 202
    assert evaluation.beat(1).json() == {"desired": "cancel"}
    assert evaluation.report().status_code == 409
    evaluation.failed("cancelled")
    assert evaluation.record["status"] == "cancelled"
    cluster.jobs[evaluation.ray_job] = RayStatus.STOPPED
    Reconciler(plane).round()
    prefix = keys.evaluation(user.tenant_id, evaluation.id)
    assert any(plane.store.keys(prefix))
    assert user.http.delete(f"/v1/evaluations/{evaluation.id}").status_code == 204
    assert user.http.get(f"/v1/evaluations/{evaluation.id}").status_code == 404
    sweep(plane)
    assert not any(plane.store.keys(prefix))


def test_the_time_that_one_like_it_took_is_told_of_the_next(plane, user, cluster, clock, model):
    evaluation = running(plane, user, model)
    evaluation.beat(1)
    clock.advance(28)
    evaluation.report()
    assert evaluation.record["total"] == 14
    assert submit(user, model).json()["seconds_per_picture"] == 2.0
    assert submit(user, model, num_inference_steps=3).json()["seconds_per_picture"] is None


def test_a_job_without_a_report_says_how_to_make_one(plane, user, job, model):
    path = f"/v1/jobs/{job.job_id}/report"
    problem = user.http.get(path).json()
    assert (problem["code"], f"boothctl evaluate {model}" in problem["remedy"]) == ("not_found", True)
    plane.store.put(keys.job_report_file(user.tenant_id, job.job_id, 1, "report.json"), b"{}")
    assert [each["name"] for each in user.http.get(path).json()["files"]] == ["report.json"]
    user.http.delete(f"/v1/models/{model}")
    problem = user.http.get(path).json()
    assert (problem["code"], "was deleted" in problem["title"]) == ("conflict", True)
    early = started(plane, user)
    assert "has no model" in user.http.get(f"/v1/jobs/{early.job_id}/report").json()["title"]


def test_recipe_names_what_models_are_scored_with():
    assert (RECIPE.encoders, RECIPE.prompt_set) == ("paper", "objects")
