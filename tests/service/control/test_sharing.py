"""A device that inference and jobs share: decisions from every situation, and the loop that carries them out."""

import json
from dataclasses import replace

import httpx2
import pytest
from control_plane import Driver, both_databases, http

from booth_service.control import sharing
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Serving, ServingState
from booth_service.control.serve_app import ServeView, view_of, with_capacity
from booth_service.settings import Settings

SERVING, DRAINING, PAUSED = ServingState.SERVING, ServingState.DRAINING, ServingState.PAUSED
SHARED = Settings(serving_yields="DEVICE", serving_drain_s=100)
UP = ServeView(is_deployed=True, is_off=False, replicas=1, running=1)
LEAVING = ServeView(is_deployed=True, is_off=True, replicas=1, running=0)
GONE = ServeView(is_deployed=True, is_off=True, replicas=0, running=0)
STARTING = ServeView(is_deployed=True, is_off=False, replicas=1, running=0)
ABSENT = ServeView(is_deployed=False, is_off=False, replicas=0, running=0)


def situation(state, serve, *, work=0, calls=0, since_s=1.0) -> sharing.Situation:
    return sharing.Situation(state, since_s, work, calls, serve)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (situation(SERVING, UP), sharing.ServeOn),
        (situation(SERVING, UP, work=1), sharing.Drain),
        (situation(SERVING, None, work=1), sharing.Drain),
        (situation(DRAINING, UP, work=1, calls=2), sharing.Hold),
        (situation(DRAINING, UP, work=1, calls=2, since_s=101), sharing.Leave),
        (situation(DRAINING, UP, work=1), sharing.Leave),
        (situation(DRAINING, LEAVING, work=1), sharing.Hold),
        (situation(DRAINING, GONE, work=1), sharing.Pause),
        (situation(DRAINING, ABSENT, work=1), sharing.Pause),
        (situation(DRAINING, None, work=1), sharing.Hold),
        (situation(DRAINING, UP), sharing.Return),  # the job was cancelled before anybody was told to leave
        (situation(DRAINING, LEAVING), sharing.Resume),
        (situation(PAUSED, GONE, work=1), sharing.Pause),
        (situation(PAUSED, None, work=1), sharing.Pause),
        (situation(PAUSED, UP, work=1), sharing.Drain),  # somebody deployed the application again
        (situation(PAUSED, STARTING, work=1), sharing.Drain),
        (situation(PAUSED, GONE), sharing.Resume),
        (situation(PAUSED, STARTING), sharing.ComingBack),
        (situation(PAUSED, UP), sharing.Return),
        (situation(PAUSED, None), sharing.ComingBack),
        (situation(PAUSED, ABSENT), sharing.ServeOn),
    ],
)
def test_what_follows_from_each_situation(now, expected):
    assert isinstance(sharing.decide(now, SHARED), expected)


@pytest.mark.parametrize("serve", [None, UP, LEAVING])
def test_jobs_wait_for_inference_no_longer_than_the_limit(serve):
    decided = sharing.decide(situation(DRAINING, serve, work=1, since_s=2 * 100 + 61), SHARED)
    assert isinstance(decided, sharing.Pause)
    assert "261" not in decided.say
    assert "260 s" in decided.say


def test_jobs_are_told_how_many_calls_they_wait_for():
    decided = sharing.decide(situation(DRAINING, UP, work=1, calls=3), SHARED)
    assert decided == sharing.Hold("Waiting for inference to finish 3 calls for pictures.")


@pytest.mark.parametrize("state", [DRAINING, PAUSED])
def test_an_operator_who_ends_the_sharing_gets_inference_back(state):
    assert isinstance(sharing.decide(situation(state, GONE, work=1), Settings(serving_yields="")), sharing.Resume)


def test_only_the_capacity_of_what_is_deployed_changes():
    ours, other = {"name": "booth", "import_path": "a:b", "runtime_env": {"x": 1}}, {"name": "other"}
    replicas = [{"state": "RUNNING"}, {"state": "STOPPING"}]
    details = {
        "proxy_location": "HeadOnly",
        "http_options": {"port": 8000},
        "grpc_options": None,
        "target_capacity": None,
        "applications": {
            "booth": {"deployed_app_config": ours, "deployments": {"Painter": {"replicas": replicas}}},
            "other": {"deployed_app_config": other, "deployments": {}},
            "imperative": {"deployed_app_config": None, "deployments": {}},
        },
    }
    kept = {"proxy_location": "HeadOnly", "http_options": {"port": 8000}, "applications": [ours, other]}
    assert with_capacity(details, 0) == {**kept, "target_capacity": 0}
    assert with_capacity(details, None) == kept
    assert view_of(details) == ServeView(is_deployed=True, is_off=False, replicas=2, running=1)
    assert view_of({"applications": {}, "target_capacity": 0}) == ServeView(False, True, 0, 0)


@pytest.fixture
def shared(plane, cluster):
    """The control plane where jobs and one replica share a device."""
    cluster.serve.is_deployed, cluster.serve.replicas = True, ["RUNNING"]
    settings = plane.settings.model_copy(update={"serving_yields": "DEVICE", "serving_drain_s": 100.0})
    return replace(plane, settings=settings)


def ask(plane, user) -> dict:
    with http(plane) as client:
        headers = {"Authorization": user.http.headers["Authorization"]}
        return client.post("/v1/base-models/tiny/generate", json={"prompts": ["p"]}, headers=headers)


def row(plane) -> tuple:
    with plane.database.read() as session:
        found = session.get_one(Serving, "stack")
    return found.state, found.job_id


@both_databases
def test_inference_leaves_for_a_job_and_comes_back_with_its_model(shared, cluster, user, stranger, clock):
    job = user.submit(shared).json()["id"]
    driver = Driver(shared, user.http, job)
    reconciler = Reconciler(shared)
    warmed = []
    transport = httpx2.MockTransport(lambda request: warmed.append(json.loads(request.content)) or httpx2.Response(204))
    shared = replace(shared, serve_now=httpx2.Client(transport=transport))
    reconciler.plane = shared

    shared.serve_calls.under_way = 2
    for _ in range(2):
        reconciler.round()
    assert row(shared) == (DRAINING, job)
    assert driver.job["status_detail"] == "Waiting for inference to finish 2 calls for pictures."
    assert cluster.serve.configs == []
    shared.serve_calls.under_way = 0
    for _ in range(2):
        reconciler.round()
    assert [config["target_capacity"] for config in cluster.serve.configs] == [0]
    assert driver.job["status_detail"] == "Waiting for inference to leave the device."
    assert (cluster.jobs, cluster.serve.replicas) == ({}, ["STOPPING"])
    cluster.serve.replicas = []
    reconciler.round()
    assert (row(shared)[0], cluster.jobs) == (PAUSED, {driver.ray_job: RayStatus.RUNNING})

    mine, other = ask(shared, user), ask(shared, stranger)
    assert (mine.status_code, mine.json()["code"], other.status_code) == (503, "paused", 503)
    assert "not known yet" in mine.json()["detail"]
    assert int(mine.headers["Retry-After"]) > 0
    assert job in mine.json()["detail"]
    assert job not in other.text
    progress = {"phase": "training", "step": 2, "total_steps": 10, "eta_s": 240}
    assert driver.call("POST", "/beat", fence=1, state="training", progress=progress).status_code == 200
    assert "about 4 min more" in ask(shared, stranger).json()["detail"]

    clock.advance(5)
    assert driver.publish().status_code == 200
    assert warmed == [], "there is no replica to warm"
    cluster.jobs[driver.ray_job] = RayStatus.SUCCEEDED
    for _ in range(2):
        reconciler.round()
    assert (cluster.serve.replicas, "target_capacity" in cluster.serve.configs[-1]) == (["STARTING"], False)
    assert "coming back" in ask(shared, user).json()["title"]
    cluster.serve.replicas = ["RUNNING"]
    reconciler.round()
    assert [model["model_id"] for model in warmed] == [driver.job["model_id"]]
    assert row(shared)[0] is SERVING
    assert ask(shared, user).json()["code"] == "unavailable"  # nothing draws behind this plane


def test_a_control_plane_that_starts_anew_goes_on_in_any_state(shared, cluster, user):
    user.submit(shared)
    for replicas in (["RUNNING"], ["RUNNING"], ["STOPPING"], []):
        if not replicas:
            cluster.serve.replicas = []
        Reconciler(shared).round()
        assert bool(cluster.jobs) == (not replicas)


def test_replicas_that_somebody_starts_again_must_leave_again(shared, cluster, user, clock):
    shared.settings.__dict__["max_running_jobs"] = 1
    job = user.submit(shared).json()["id"]
    for _ in range(3):
        Reconciler(shared).round()
        cluster.serve.replicas = [] if cluster.serve.capacity == 0 else cluster.serve.replicas
    assert list(cluster.jobs) == [f"{job}-a1"]
    cluster.jobs.clear()  # a new head, where the application was deployed from its file
    cluster.serve.capacity, cluster.serve.replicas = None, ["RUNNING"]
    clock.advance(1)
    for _ in range(4):
        Reconciler(shared).round()
        clock.advance(10)
    assert (cluster.serve.capacity, cluster.jobs) == (0, {})
    cluster.serve.replicas = []
    Reconciler(shared).round()
    assert list(cluster.jobs) == [f"{job}-a2"]


def test_a_serve_that_is_away_does_not_block_jobs_for_ever(shared, cluster, user, clock):
    job = user.submit(shared).json()["id"]
    cluster.serve_details = cluster.deploy = lambda *_: cluster_away()
    for _ in range(2):
        Reconciler(shared).round()
    assert "does not answer" in Driver(shared, user.http, job).job["status_detail"]
    assert not cluster.jobs
    clock.advance(261)
    Reconciler(shared).round()
    assert list(cluster.jobs) == [f"{job}-a1"]
    assert any("has not answered for 260 s" in each["message"] for each in Driver(shared, user.http, job).events())


def cluster_away():
    from booth_service.control.launcher import ClusterAway

    raise ClusterAway("connection refused")


def test_nothing_is_shared_where_nothing_is_named(plane, cluster, user):
    cluster.serve.is_deployed, cluster.serve.replicas = True, ["RUNNING"]
    job = user.submit(plane).json()["id"]
    Reconciler(plane).round()
    assert (list(cluster.jobs), cluster.serve.configs) == ([f"{job}-a1"], [])
    assert ask(plane, user).json()["code"] == "unavailable"


def test_a_generation_takes_the_device_as_a_job_does(shared, cluster, user, stranger):
    body = {"prompts": ["a dog"], "seed": 1}
    posted = user.http.post("/v1/base-models/tiny/generations", json=body, headers={"Idempotency-Key": "k"})
    generation = posted.json()["id"]
    for _ in range(4):
        Reconciler(shared).round()
        cluster.serve.replicas = [] if cluster.serve.capacity == 0 else cluster.serve.replicas
    assert list(cluster.jobs) == [f"{generation}-a1"]
    assert f"your generation {generation}" in ask(shared, user).json()["detail"]
    assert "another job" in ask(shared, stranger).json()["detail"]
