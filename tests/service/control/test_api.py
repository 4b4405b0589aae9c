"""The whole way of a job through the API, with a stand-in for the cluster; pages and events."""

import hashlib
import threading

import httpx2
from control_plane import RECIPE, Driver, both_databases, started, tiny_base

from booth.contract.digests import Check, part_ranges, sha256_of_parts
from booth_service.control import base_models
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler


@both_databases
def test_a_job_from_submission_to_model(plane, user, cluster):
    job = user.submit(plane, seed=7).json()
    assert job["status"] == "queued"
    assert job["params"]["instance_prompt"] == "a photo of sks dog"
    assert job["params"]["seed"] == 7
    reconciler = Reconciler(plane)
    reconciler.round()
    assert cluster.jobs == {f"{job['id']}-a1": RayStatus.RUNNING}

    driver = Driver(plane, user.http, job["id"])
    brief = driver.call("GET").json()
    assert (brief["attempt"], brief["fence"], brief["tenant_id"]) == (1, 1, user.tenant_id)
    assert [photo["path"] for photo in brief["photos"]] == ["00.png"]
    assert driver.beat("preparing", phase="class images").json() == {"desired": "run"}
    assert driver.beat("training", step=5).json() == {"desired": "run"}
    assert driver.job["progress"]["step"] == 5
    assert driver.publish().json() == {}

    assert driver.job["status"] == "succeeded"
    model = user.http.get(f"/v1/models/{driver.job['model_id']}").json()
    assert model["prompt_prefix"] == "sks dog"
    files = user.http.get(f"/v1/models/{model['id']}/files").json()["files"]
    assert len(files) == 8
    assert all(len(httpx2.get(file["url"], trust_env=False).content) == file["bytes"] for file in files)

    cluster.jobs[driver.ray_job] = RayStatus.SUCCEEDED
    reconciler.round()
    logs = user.http.get(f"/v1/jobs/{job['id']}/logs").json()
    assert logs["complete"]
    assert logs["text"].startswith("log of job-")
    messages = [event["message"] for event in driver.events()]
    assert messages[0] == "The job was accepted."
    assert messages[-1] == "The model is ready."


@both_databases
def test_a_models_base_files_are_those_it_was_trained_from(plane, user, clock):
    driver = started(plane, user)
    driver.publish()
    path = f"/v1/models/{driver.job['model_id']}"
    with plane.database.write() as session:
        base_models.register(session, "tiny", RECIPE, tiny_base(plane.store)[1:], default=False, now=clock())
    files = user.http.get(f"{path}/base-files").json()["files"]
    expected = tiny_base(plane.store)
    assert [(file["path"], file["sha256"]) for file in files] == [(file.path, file.sha256) for file in expected]
    assert all(
        httpx2.get(file["url"], trust_env=False).content == plane.store.get(stored.key)
        for file, stored in zip(files, expected, strict=True)
    )
    published = user.http.get(f"{path}/files").json()["files"]
    assert sum(file not in [{**each, "url": file["url"]} for each in files] for file in published) == 1


def test_the_digests_of_a_files_parts_reach_its_user(plane, user):
    driver = started(plane, user)

    def in_parts(manifest):
        half = manifest.changed[0].bytes // 2
        body = plane.store.get(manifest.changed[0].key)
        parts = [hashlib.sha256(body[s : s + n]).hexdigest() for s, n in part_ranges(len(body), half)]
        digests = {"sha256": sha256_of_parts(parts), "part_bytes": half, "part_sha256": parts}
        return manifest.model_copy(update={"changed": [manifest.changed[0].model_copy(update=digests)]})

    assert driver.publish(edit=in_parts).json() == {}
    files = user.http.get(f"/v1/models/{driver.job['model_id']}/files").json()["files"]
    [changed] = [file for file in files if file["part_bytes"]]
    check = Check(changed["sha256"], changed["part_bytes"], changed["part_sha256"])
    check.update(httpx2.get(changed["url"], trust_env=False).content)
    assert len(changed["part_sha256"]) > 1
    assert check.is_right()


def test_health_needs_no_key(plane, user):
    del user.http.headers["Authorization"]
    answer = user.http.get("/v1/health")
    assert answer.json()["status"] == "ok"
    assert answer.headers["X-Request-Id"].startswith("req-")


def test_jobs_come_newest_first_in_pages(plane, user):
    ids = [user.submit(plane, key=f"k{number}").json()["id"] for number in range(5)]
    first = user.http.get("/v1/jobs", params={"limit": 2}).json()
    second = user.http.get("/v1/jobs", params={"limit": 2, "after": first["next_after"]}).json()
    third = user.http.get("/v1/jobs", params={"limit": 2, "after": second["next_after"]}).json()
    listed = [job["id"] for page in (first, second, third) for job in page["jobs"]]
    assert listed == ids[::-1]
    assert third["next_after"] is None


def test_jobs_can_be_asked_for_by_status(plane, user):
    kept = user.submit(plane, key="k1").json()["id"]
    gone = user.submit(plane, key="k2").json()["id"]
    user.http.post(f"/v1/jobs/{gone}/cancel")
    assert [job["id"] for job in user.http.get("/v1/jobs?status=queued").json()["jobs"]] == [kept]
    assert [job["id"] for job in user.http.get("/v1/jobs?status=cancelled").json()["jobs"]] == [gone]
    assert user.http.get("/v1/jobs?status=sleeping").status_code == 422


def test_events_resume_after_a_number_without_gap_or_repetition(plane, user):
    driver = started(plane, user)
    driver.beat("preparing")
    all_events = driver.events()
    assert [event["seq"] for event in all_events] == list(range(1, len(all_events) + 1))
    rest = user.http.get(f"/v1/jobs/{driver.job_id}/events?after=2").json()["events"]
    assert rest == all_events[2:]


def test_a_waiting_reader_gets_the_event_that_comes(plane, user):
    driver = started(plane, user)
    last = driver.events()[-1]["seq"]
    answers = []
    url = f"/v1/jobs/{driver.job_id}/events?after={last}&wait_s=30"
    reader = threading.Thread(target=lambda: answers.append(user.http.get(url).json()))
    reader.start()
    driver.beat("preparing", note="making class images")
    reader.join(timeout=25)  # less than wait_s: only the event can have ended the wait
    assert not reader.is_alive()
    assert answers[0]["events"][0]["seq"] == last + 1


def test_a_reader_of_a_final_job_does_not_wait(plane, user):
    job = user.submit(plane).json()
    cancelled = user.http.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    reader = threading.Thread(target=user.http.get, args=[f"/v1/jobs/{job['id']}/events?after=99&wait_s=30"])
    reader.start()
    reader.join(timeout=25)
    assert not reader.is_alive()


def test_cancelling_a_final_job_is_a_conflict(plane, user):
    job = user.submit(plane).json()
    user.http.post(f"/v1/jobs/{job['id']}/cancel")
    again = user.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert again.status_code == 409
    assert again.json()["code"] == "conflict"


def test_logs_come_from_the_running_attempt_in_parts(plane, user, cluster):
    driver = started(plane, user)
    cluster.printed[driver.ray_job] = "one\ntwo\n"
    first = user.http.get(f"/v1/jobs/{driver.job_id}/logs").json()
    assert first == {"text": "one\ntwo\n", "next_offset": 8, "attempt": 1, "complete": False}
    cluster.printed[driver.ray_job] += "three\n"
    rest = user.http.get(f"/v1/jobs/{driver.job_id}/logs?offset=8").json()
    assert (rest["text"], rest["next_offset"]) == ("three\n", 14)


def test_logs_are_unavailable_while_the_cluster_is_away(plane, user, cluster):
    driver = started(plane, user)
    cluster.is_away = True
    answer = user.http.get(f"/v1/jobs/{driver.job_id}/logs")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]


def test_a_deleted_model_is_gone_for_its_owner(plane, user):
    driver = started(plane, user)
    driver.publish()
    model_id = driver.job["model_id"]
    assert user.http.delete(f"/v1/models/{model_id}").status_code == 204
    assert user.http.get(f"/v1/models/{model_id}").status_code == 404
    assert user.http.delete(f"/v1/models/{model_id}").status_code == 404
    assert user.http.get("/v1/models").json()["models"] == []


def test_base_models_show_their_recipe(plane, user):
    listed = user.http.get("/v1/base-models").json()["base_models"]
    assert [(base["name"], base["is_default"], base["recipe"]["steps"]) for base in listed] == [("tiny", True, 10)]
