"""Whose is what: every route with another tenant's id, and every route without a good key."""

import re

import pytest
from control_plane import http, started

from booth_service.control import auth
from booth_service.control.records import ApiKey, EncoderSuite
from booth_service.control.sweep import sweep

JOB_ROUTES = [
    ("GET", "/v1/jobs/{job}"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("GET", "/v1/jobs/{job}/events"),
    ("GET", "/v1/jobs/{job}/logs"),
    ("GET", "/v1/jobs/{job}/samples"),
    ("GET", "/v1/jobs/{job}/scores"),
    ("GET", "/v1/jobs/{job}/report"),
]
MODEL_ROUTES = [
    ("GET", "/v1/models/{model}"),
    ("DELETE", "/v1/models/{model}"),
    ("GET", "/v1/models/{model}/files"),
    ("GET", "/v1/models/{model}/base-files"),
    ("POST", "/v1/models/{model}/generate"),
    ("POST", "/v1/models/{model}/generations"),
]
GENERATION_ROUTES = [
    ("GET", "/v1/generations/{generation}"),
    ("GET", "/v1/generations/{generation}/pictures"),
    ("POST", "/v1/generations/{generation}/cancel"),
    ("DELETE", "/v1/generations/{generation}"),
]
EVALUATION_ROUTES = [
    ("GET", "/v1/evaluations/{evaluation}"),
    ("GET", "/v1/evaluations/{evaluation}/report"),
    ("POST", "/v1/evaluations/{evaluation}/cancel"),
    ("DELETE", "/v1/evaluations/{evaluation}"),
]
GROUP_ROUTES = [
    ("GET", "/v1/groups/{group}"),
    ("GET", "/v1/groups/{group}/cells"),
    ("GET", "/v1/groups/{group}/report"),
    ("POST", "/v1/groups/{group}/cancel"),
    ("DELETE", "/v1/groups/{group}"),
]
OWN_ROUTES = JOB_ROUTES + MODEL_ROUTES + GENERATION_ROUTES + EVALUATION_ROUTES + GROUP_ROUTES
OTHER_ROUTES = [
    ("GET", "/v1/base-models"),
    ("GET", "/v1/encoder-suites"),
    ("POST", "/v1/jobs/prepare"),
    ("POST", "/v1/class-images"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/models"),
    ("POST", "/v1/base-models/tiny/generate"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/base-models/tiny/generations"),
    ("GET", "/v1/generations"),
    ("POST", "/v1/evaluations"),
    ("GET", "/v1/evaluations"),
    ("POST", "/v1/groups"),
    ("GET", "/v1/groups"),
]
OPEN_ROUTES = {("GET", "/v1/health"), ("GET", "/v1/ready")}
BODIES = {
    "generate": {"prompts": ["a dog"]},
    "generations": {"prompts": ["a dog"]},
    "/v1/images/generations": {"prompt": "a dog", "model": "tiny"},
    "prepare": {"class_noun": "dog", "images": [{"sha256": "a" * 64, "bytes": 1}]},
    "jobs": {"class_noun": "dog", "images": [{"sha256": "a" * 64, "bytes": 1}]},
}


def call(http, method: str, path: str, headers=None):
    body = BODIES.get(path, BODIES.get(path.rsplit("/", 1)[-1])) if method == "POST" else None
    return http.request(method, path, json=body, headers={"Idempotency-Key": "k", **(headers or {})})


@pytest.fixture
def ids(plane, user) -> dict[str, str]:
    """A job, its model, a generation, an evaluation of the model and a group, of `user`."""
    driver = started(plane, user)
    driver.publish()
    own_key, other_key, third_key = ({"Idempotency-Key": key} for key in ("own", "other", "third"))
    generation = call(user.http, "POST", "/v1/base-models/tiny/generations", own_key).json()
    with plane.database.write() as session:
        session.add(EncoderSuite(id="enc", name="paper", spec={}, files=[], source="", created_at=plane.now()))
    asked = {"model_id": driver.job["model_id"], "prompts": ["a {subject}"]}
    evaluation = user.http.post("/v1/evaluations", json=asked, headers=other_key).json()
    job = {"class_noun": "dog", "token": "sks", "images": user.put_photos(plane)}
    cells = [{"subject": "rex", "arm": "plain", "job": job}]
    asked = {"kind": "sweep", "name": "one", "cells": cells}
    group = user.http.post("/v1/groups", json=asked, headers=third_key).json()
    made = {"generation": generation, "evaluation": evaluation, "group": group}
    return {"job": driver.job_id, "model": driver.job["model_id"], **{kind: each["id"] for kind, each in made.items()}}


@pytest.mark.parametrize(("method", "path"), OWN_ROUTES)
def test_anothers_ids_are_as_good_as_none(plane, ids, stranger, method, path):
    theirs = call(stranger.http, method, path.format(**ids))
    nobodys = call(stranger.http, method, path.format(**{kind: f"{kind}-nobodys" for kind in ids}))
    assert (theirs.status_code, nobodys.status_code) == (404, 404)
    title = theirs.json()["title"]
    for kind, own in ids.items():
        title = title.replace(own, f"{kind}-nobodys")
    assert title == nobodys.json()["title"]


def test_a_stranger_changed_nothing(plane, user, ids, stranger):
    for method, path in OWN_ROUTES:
        call(stranger.http, method, path.format(**ids))
    assert user.http.get(f"/v1/models/{ids['model']}").status_code == 200
    for path in (f"/v1/{kind}s/{ids[kind]}" for kind in ("job", "generation", "evaluation", "group")):
        assert user.http.get(path).json()["cancel_requested"] is False


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_deleted_model_is_as_good_as_none(plane, user, stranger, ids, is_swept):
    assert user.http.delete(f"/v1/models/{ids['model']}").status_code == 204
    if is_swept:
        sweep(plane)
    for method, path in MODEL_ROUTES:
        for each in (user, stranger):
            assert call(each.http, method, path.format(**ids)).status_code == 404, path
    assert user.http.get("/v1/models").json()["models"] == []
    assert user.http.get(f"/v1/jobs/{ids['job']}").json()["status"] == "succeeded"


def test_every_route_of_the_users_api_is_among_these(plane):
    """So that a new route is held to the same."""
    here = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in OWN_ROUTES + OTHER_ROUTES}
    here = {(method, path.replace("/tiny/", "/{}/")) for method, path in here} | OPEN_ROUTES
    there = {
        (method, re.sub(r"\{\w+\}", "{}", path))
        for path, methods in http(plane).app.openapi()["paths"].items()
        for method in map(str.upper, methods)
        if path.startswith("/v1/")
    }
    assert there == here


def test_lists_show_ones_own(plane, user, ids, stranger):
    assert stranger.http.get("/v1/jobs").json()["jobs"] == []
    assert stranger.http.get("/v1/models").json()["models"] == []
    for kind in ("generations", "evaluations", "groups"):
        assert stranger.http.get(f"/v1/{kind}").json()[kind] == []
        assert len(user.http.get(f"/v1/{kind}").json()[kind]) == 1
    assert len(user.http.get("/v1/jobs").json()["jobs"]) == 2  # the group's cell is one too


@pytest.mark.parametrize(
    "key", [None, "", "nonsense", "booth_", "booth__", "booth_000000000000_secret", "booth_{id}_wrong", "{secret}"]
)
def test_a_bad_key_opens_nothing(plane, user, key):
    _, public, secret = user.http.headers["Authorization"].removeprefix("Bearer ").split("_", 2)
    del user.http.headers["Authorization"]
    headers = {} if key is None else {"Authorization": f"Bearer {key.format(id=public, secret=secret)}"}
    for method, path in OWN_ROUTES + OTHER_ROUTES:
        answer = call(
            user.http, method, path.format(job="j", model="m", generation="g", evaluation="e", group="g"), headers
        )
        assert answer.status_code == 401, path
        body = answer.json()
        assert body.get("code", body.get("error", {}).get("code")) in ("unauthenticated", "invalid_api_key")


def test_a_revoked_key_fails_at_once(plane, user, clock):
    public = user.http.headers["Authorization"].split("_")[1]
    assert user.http.get("/v1/jobs").status_code == 200
    with plane.database.write() as session:
        session.get_one(ApiKey, public).revoked_at = clock()
    assert user.http.get("/v1/jobs").status_code == 401


def test_the_database_holds_no_key_that_could_be_used(plane, user):
    key = user.http.headers["Authorization"].removeprefix("Bearer ")
    with plane.database.read() as session:
        row = session.get_one(ApiKey, key.split("_")[1])
        stored = [str(getattr(row, column.key)) for column in ApiKey.__table__.columns]
        assert auth.find_tenant(session, key) == user.tenant_id
        assert not any(key.split("_", 2)[2] in value for value in stored)
        assert auth.find_tenant(session, f"booth_{row.id}_{row.secret_sha256}") is None


@pytest.mark.parametrize("path", ["", "/beat", "/published", "/failed"])
def test_a_users_key_is_no_attempts_token(plane, user, path):
    driver = started(plane, user)
    body = {"fence": 1, "state": "training", "progress": {}, "reason": "internal", "manifest_key": "k"}
    url = f"/internal/attempts/{driver.job_id}/1{path}"
    answer = user.http.request("POST" if path else "GET", url, json={**body, "manifest_sha256": "0"})
    assert answer.status_code == 401


def test_an_attempts_token_is_good_for_that_attempt_alone(plane, user):
    one, other = started(plane, user), started(plane, user)
    headers = {"Authorization": one.call("GET").request.headers["Authorization"]}
    assert user.http.get(f"/internal/attempts/{one.job_id}/1", headers=headers).status_code == 200
    assert user.http.get(f"/internal/attempts/{one.job_id}/2", headers=headers).status_code == 401
    assert user.http.get(f"/internal/attempts/{other.job_id}/1", headers=headers).status_code == 401
    assert user.http.get("/v1/jobs", headers=headers).status_code == 401
