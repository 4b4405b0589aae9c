"""Jobs on their way in: idempotency, photos, defaults, warnings, and what a refused job leaves behind."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from control_plane import RECIPE, both_databases, photo, tiny_base
from sqlalchemy import func, select

from booth.contract.models import Recipe
from booth_service.control import base_models
from booth_service.control.records import Job, Upload
from booth_service.storage import keys


def jobs_in(plane) -> int:
    with plane.database.read() as session:
        return session.scalar(select(func.count()).select_from(Job))


def uploads_in(plane) -> int:
    with plane.database.read() as session:
        return session.scalar(select(func.count()).select_from(Upload))


@both_databases
def test_twenty_submissions_at_once_under_one_key_make_one_job(plane, user):
    spec = {"class_noun": "dog", "token": "sks", "images": user.put_photos(plane, 3), "seed": 1}

    def submit(_: int) -> httpx2.Response:
        return user.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "one"})

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(submit, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert jobs_in(plane) == 1


def test_a_repetition_is_answered_with_the_job_as_it_stands(plane, user):
    images = user.put_photos(plane)
    first = user.submit(plane, images=images)
    user.http.post(f"/v1/jobs/{first.json()['id']}/cancel")
    again = user.submit(plane, images=images)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (again.json()["id"], again.json()["status"]) == (first.json()["id"], "cancelled")


def test_a_key_used_for_another_request_is_refused(plane, user):
    user.submit(plane, key="k")
    answer = user.submit(plane, key="k", steps=3)
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "Idempotency-Key"
    assert jobs_in(plane) == 1


def test_keys_of_two_tenants_are_two_keys(plane, user, stranger):
    assert user.submit(plane, key="k").json()["id"] != stranger.submit(plane, key="k").json()["id"]


def test_a_submission_without_a_key_is_refused(plane, user):
    answer = user.http.post("/v1/jobs", json={"class_noun": "dog", "images": user.put_photos(plane)})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "Idempotency-Key"


def test_preparing_lists_uploads_and_gives_links_that_work(plane, user):
    body = photo()
    spec = {"class_noun": "dog", "images": [{"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}]}
    prepared = user.http.post("/v1/jobs/prepare", json=spec).json()
    assert prepared["params"]["steps"] == RECIPE.steps
    assert uploads_in(plane) == 1
    assert jobs_in(plane) == 0
    assert httpx2.put(prepared["uploads"][0]["url"], content=body, trust_env=False).status_code == 200
    assert user.http.post("/v1/jobs/prepare", json=spec).json()["uploads"][0]["url"] is None
    submitted = user.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert submitted.status_code == 202
    assert uploads_in(plane) == 0


def test_an_accepted_photo_is_kept_clean_and_its_upload_is_gone(plane, user):
    job = user.submit(plane).json()
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []
    [key] = plane.store.keys(f"tenants/{user.tenant_id}/photos/")
    with plane.database.read() as session:
        [stored] = session.get_one(Job, job["id"]).photos
    assert stored["key"] == key
    assert hashlib.sha256(plane.store.get(key)).hexdigest() == stored["sha256"]


def test_a_photo_of_an_earlier_job_needs_no_upload(plane, user):
    body = photo()
    user.submit(plane)
    reference = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    spec = {"class_noun": "dog", "images": [reference]}
    assert user.http.post("/v1/jobs/prepare", json=spec).json()["uploads"][0]["url"] is None
    assert user.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k2"}).status_code == 202


def test_a_photo_that_another_submission_takes_at_that_moment_is_found(plane, user, monkeypatch):
    images = user.put_photos(plane)
    spec = {"class_noun": "dog", "images": images}
    original, others = plane.store.size, []

    def size(key: str) -> int | None:
        if not others:
            others.append(user.http)
            assert user.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "other"}).status_code == 202
        return original(key)

    monkeypatch.setattr(plane.store, "size", size)
    assert user.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "this"}).status_code == 202
    assert jobs_in(plane) == 2


def test_a_photo_of_another_tenant_must_be_uploaded_again(plane, user, stranger):
    images = user.put_photos(plane)
    user.submit(plane, images=images)
    spec = {"class_noun": "dog", "images": images}
    assert stranger.http.post("/v1/jobs/prepare", json=spec).json()["uploads"][0]["url"] is not None
    answer = stranger.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 422


def test_every_bad_photo_is_named_and_no_job_is_left(plane, user):
    def put(name: str, body: bytes, claimed: bytes | None = None) -> dict:
        digest = hashlib.sha256(body if claimed is None else claimed).hexdigest()
        plane.store.put(keys.upload(user.tenant_id, digest), body)
        return {"sha256": digest, "bytes": len(body), "filename": name}

    images = [
        put("good.png", photo()),
        put("text.jpg", b"not a photo"),
        put("swapped.png", photo(1), claimed=b"other bytes"),
        {"sha256": "0" * 64, "bytes": 10, "filename": "missing.png"},
        put("tiny.png", photo(size=(8, 8))),
    ]
    answer = user.submit(plane, images=images)
    assert answer.status_code == 422
    problems = answer.json()["problems"]
    assert [problem["value"] for problem in problems] == ["text.jpg", "swapped.png", "missing.png", "tiny.png"]
    assert all(problem["message"] and problem["remedy"] for problem in problems)
    assert jobs_in(plane) == 0
    assert uploads_in(plane) == 5  # listed, so that the sweep finds them


def test_dials_not_given_are_the_recipes(plane, user):
    params = user.submit(plane).json()["params"]
    same = ["steps", "learning_rate", "num_class_images", "resolution", "train_batch_size", "weight_decay"]
    assert {name: params[name] for name in same} == {name: getattr(RECIPE, name) for name in same}
    assert 0 <= params["seed"] < 2**31


def test_words_are_kept_as_they_are(plane, user):
    noun = """dog's "toy" $(touch x); `id` \N{DOG FACE} 'DROP TABLE'"""
    job = user.submit(plane, class_noun=noun, name="n: <b>").json()
    assert job["params"]["class_noun"] == noun
    assert job["params"]["instance_prompt"] == f"a photo of sks {noun}"
    assert job["name"] == "n: <b>"


def test_each_job_without_a_token_gets_the_one_used_least(plane, user, stranger):
    tokens = [user.submit(plane, key=f"k{n}", token=None).json()["params"]["token"] for n in range(3)]
    assert tokens == ["sks", "zwx", "sks"]
    assert stranger.submit(plane, token=None).json()["params"]["token"] == "sks"


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"token": "qqqqz"}, "is 5 pieces"),
        ({"class_noun": "aqaqaqaqaqaqaqaqaqaqaqaqaqaq"}, "is cut off"),
        ({}, "1 photo"),
        ({"resolution": 128}, "resolution 128 is not the 64"),
        (
            {"train_text_encoder": False, "options": {"text_encoder_learning_rate": 1e-5}},
            "text_encoder_learning_rate has no effect",
        ),
        ({"prior_loss_weight": 0, "num_class_images": 8}, "num_class_images has no effect"),
        ({"prior_loss_weight": 1, "num_class_images": 0}, "prior_loss_weight has no effect"),
    ],
)
def test_what_will_disappoint_is_said_before_it_does(plane, user, dials, said):
    job = user.submit(plane, **dials).json()
    assert any(said in warning for warning in job["warnings"]), job["warnings"]


def test_three_photos_and_a_rare_token_need_no_warning(plane, user):
    assert user.submit(plane, images=user.put_photos(plane, 3)).json()["warnings"] == []


def test_a_photo_given_twice_is_used_once(plane, user):
    [image] = user.put_photos(plane)
    job = user.submit(plane, images=[image, image]).json()
    assert any("given twice" in warning for warning in job["warnings"])
    with plane.database.read() as session:
        assert len(session.get_one(Job, job["id"]).photos) == 1


def test_no_prior_means_no_class_images(plane, user):
    params = user.submit(plane, prior_loss_weight=0).json()["params"]
    assert (params["prior_loss_weight"], params["num_class_images"]) == (0, 0)


@both_databases
def test_a_job_keeps_its_base_model_when_that_is_replaced(plane, user, clock):
    old = user.submit(plane).json()
    with plane.database.write() as session:
        recipe = Recipe(**{**RECIPE.model_dump(), "steps": 99})
        files = tiny_base(plane.store)[1:]
        assert base_models.register(session, "tiny", recipe, files, default=False, now=clock()) == "replaced"
    new = user.submit(plane, key="k2").json()
    assert (old["params"]["steps"], new["params"]["steps"]) == (10, 99)
    with plane.database.read() as session:
        bases = [session.get_one(Job, job["id"]).base_model_id for job in (old, new)]
    assert bases[0] != bases[1]


def test_the_spec_is_stored_as_it_was_sent(plane, user):
    job = user.submit(plane, steps=3, options={"random_flip": True}).json()
    with plane.database.read() as session:
        spec = session.get_one(Job, job["id"]).spec
    assert spec["steps"] == 3
    assert spec["options"]["random_flip"] is True
    assert job["params"]["random_flip"] is True
    assert json.dumps(spec)
