"""Groups over the API and through the reconciler, on both databases: admission, claims, cells, end."""

import hashlib
import secrets
from dataclasses import dataclass

import httpx2
from control_plane import Clock, Cluster, Driver, User, both_databases, photo, started

from booth.contract.groups import CellPage, ClaimedCell, GroupBrief
from booth.contract.scores import Score
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Attempt, AttemptState, Group, Job, StepScore
from booth_service.control.sweep import sweep
from booth_service.settings import attempt_token
from booth_service.storage import keys

ARMS = {"lr=1e-06": {"learning_rate": 1e-6}, "lr=5e-06": {"learning_rate": 5e-6}}


def group_spec(user: User, plane: Plane, subjects: tuple[str, ...] = ("rex", "tom"), **changes) -> dict:
    """Two subjects, two arms: four cells."""
    cells = []
    for number, subject in enumerate(subjects):
        images = [user.put(plane, photo(seed=10 * number + k), f"{subject}-{k}.png") for k in range(2)]
        for arm, dials in ARMS.items():
            job = {"class_noun": "dog", "token": "sks", "images": images, **dials}
            cells.append({"subject": subject, "arm": arm, "values": {"learning_rate": arm[3:]}, "job": job})
    return {"kind": "sweep", "name": "rates", "cells": cells, "baseline": "lr=1e-06", **changes}


def submit(user: User, spec: dict, key: str | None = None) -> httpx2.Response:
    return user.http.post("/v1/groups", json=spec, headers={"Idempotency-Key": key or secrets.token_hex(4)})


@dataclass
class Walk:
    """What a group's driver does, over the driver's own API; `record` is what its owner sees."""

    plane: Plane
    user: User
    id: str
    number: int = 1

    @property
    def record(self) -> dict:
        return self.user.http.get(f"/v1/groups/{self.id}").json()

    @property
    def ray_job(self) -> str:
        return f"{self.id}-a{self.number}"

    def cells(self) -> list[dict]:
        return self.user.http.get(f"/v1/groups/{self.id}/cells").json()["cells"]

    def call(self, method: str, path: str = "", **body) -> httpx2.Response:
        token = attempt_token(self.plane.settings.stack_secret, self.id, self.number)
        url = f"/internal/runs/{self.id}/{self.number}{path}"
        headers = {"Authorization": f"Bearer {token}"}
        return self.user.http.request(
            method, url, json={"fence": self.number, **body} if body else None, headers=headers
        )

    def brief(self) -> GroupBrief:
        return GroupBrief.model_validate_json(self.call("GET").content)

    def beat(self, step: int = 0, phase: str = "cells") -> httpx2.Response:
        return self.call("POST", "/beat", state="preparing", progress={"phase": phase, "step": step, "total_steps": 4})

    def claim(self, job_id: str) -> ClaimedCell:
        answer = self.call("POST", f"/cells/{job_id}")
        assert answer.status_code == 200, answer.text
        return ClaimedCell.model_validate_json(answer.content)

    def run(self, job_id: str) -> Driver:
        """The cell, claimed."""
        claimed = self.claim(job_id)
        assert claimed.attempt is not None, claimed
        return Driver(self.plane, self.user.http, job_id, claimed.attempt, claimed.fence)

    def done(self) -> httpx2.Response:
        prefix = keys.run("group", self.user.tenant_id, self.id)
        key, body = keys.report_file(prefix, self.number, "report.json"), b'{"title": "t", "rows": []}'
        self.plane.store.put(key, body)
        self.plane.store.put(keys.report_file(prefix, self.number, "sheet.png"), b"png")
        return self.call("POST", "/done", manifest_key=key, manifest_sha256=hashlib.sha256(body).hexdigest())


def running(plane: Plane, user: User, **changes) -> Walk:
    """A group whose first attempt runs."""
    answer = submit(user, group_spec(user, plane, **changes))
    assert answer.status_code == 202, answer.text
    Reconciler(plane).round()
    return Walk(plane, user, answer.json()["id"])


def attempt_of(plane: Plane, job_id: str, number: int = 1) -> Attempt:
    with plane.database.read() as session:
        return session.get_one(Attempt, (job_id, number))


@both_databases
def test_the_whole_life_of_a_group(plane, user, cluster):
    walk = running(plane, user)
    assert cluster.programs == {walk.ray_job: Group.program}, "one Ray job for all cells"
    record = walk.record
    assert (record["status"], record["total"], record["states"]) == ("queued", 4, {"queued": 4})
    brief = walk.brief()
    assert [(cell.labels.subject, cell.labels.arm) for cell in brief.cells] == [
        (subject, arm) for subject in ("rex", "tom") for arm in ARMS
    ]
    jobs = {each["id"]: each for each in user.http.get("/v1/jobs").json()["jobs"]}
    assert {each["group_id"] for each in jobs.values()} == {walk.id}
    assert jobs[brief.cells[1].job_id]["params"]["learning_rate"] == 5e-6
    assert jobs[brief.cells[1].job_id]["name"] == "rates: rex, lr=5e-06"

    cells = [walk.run(cell.job_id) for cell in brief.cells[:2]]
    assert attempt_of(plane, cells[0].job_id).ray_submission_id == walk.ray_job
    cells[0].beat("training", step=3)
    walk.beat(0)
    assert walk.record["status_detail"] == "0 of 4 cells are over, 1 run now."
    assert cells[0].publish().status_code == 200
    Reconciler(plane).round()
    assert attempt_of(plane, cells[0].job_id).state is AttemptState.CLOSED, "though the shared Ray job runs on"
    assert cluster.jobs == {walk.ray_job: RayStatus.RUNNING}

    cells[1].failed("not_finite", "step 3")
    assert walk.claim(cells[1].job_id).status == "failed"
    for cell in brief.cells[2:]:
        assert walk.run(cell.job_id).publish().status_code == 200
    walk.beat(4)
    assert [walk.done().status_code for _ in range(2)] == [200, 200]
    record = walk.record
    assert (record["status"], record["done"], record["states"]) == ("succeeded", 4, {"succeeded": 3, "failed": 1})
    assert record["status_detail"].startswith("3 of 4 cells succeeded. The others, 1 times: The loss stopped")
    files = user.http.get(f"/v1/groups/{walk.id}/report").json()["files"]
    assert [(file["name"], file["bytes"]) for file in files] == [("report.json", 26), ("sheet.png", 3)]
    assert httpx2.get(files[1]["url"], trust_env=False).content == b"png"
    assert [cell["status"] for cell in walk.cells()] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert walk.cells()[1]["error"]["reason"] == "not_finite"
    cluster.jobs[walk.ray_job] = RayStatus.SUCCEEDED
    for _ in range(2):
        Reconciler(plane).round()
    log = user.http.get(f"/v1/jobs/{cells[1].job_id}/logs").json()
    assert (log["text"], log["complete"]) == (f"log of {walk.ray_job}\n", True), "its cells speak in the group's log"
    assert plane.store.size(keys.attempt_log(user.tenant_id, cells[1].job_id, 1)) is None


@both_databases
def test_one_key_makes_one_group(plane, user):
    spec = group_spec(user, plane)
    first, again = submit(user, spec, "k"), submit(user, spec, "k")
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(user.http.get("/v1/jobs").json()["jobs"]) == 4
    other = submit(user, {**spec, "name": "other"}, "k")
    assert (other.status_code, other.json()["problems"][0]["field"]) == (422, "Idempotency-Key")
    generation = {"prompts": ["a dog"]}
    user.http.post("/v1/base-models/tiny/generations", json=generation, headers={"Idempotency-Key": "taken"})
    assert submit(user, spec, "taken").status_code == 422
    user.http.delete(f"/v1/groups/{first.json()['id']}")
    assert submit(user, spec, "k").status_code == 409


def test_all_that_is_wrong_is_named_and_nothing_is_left(plane, user):
    spec = group_spec(user, plane, baseline="lr=2")
    spec["cells"][1]["job"]["base_model"] = "none"
    spec["cells"][2]["job"]["class_noun"] = "do\x07g"
    spec["cells"][3] |= {"subject": "rex"}
    answer = submit(user, spec)
    assert answer.status_code == 422
    named = {problem["field"]: problem["remedy"] for problem in answer.json()["problems"]}
    assert set(named) == {"cells.3", "baseline", "cells.1.job.base_model", "cells.2.job.class_noun"}
    assert named["baseline"] == "Name one of: lr=1e-06, lr=5e-06."
    missing = group_spec(user, plane)
    for cell in missing["cells"][2:]:
        cell["job"]["images"] = [{"sha256": "0" * 64, "bytes": 5, "filename": "gone.png"}]
    problems = submit(user, missing).json()["problems"]
    assert [(each["field"], each["value"]) for each in problems] == [("cells.2.job.images.0", "gone.png")], "once"
    for body, said in (({**spec, "cells": []}, "at least 1"), ({**spec, "cells": spec["cells"] * 251}, "at most 1000")):
        (problem,) = submit(user, body).json()["problems"]
        assert (problem["field"], said in problem["message"]) == ("cells", True)
    assert user.http.get("/v1/groups").json()["groups"] == user.http.get("/v1/jobs").json()["jobs"] == []


def test_hundreds_of_cells_look_at_their_photos_once(plane, user, monkeypatch):
    spec = group_spec(user, plane, ("rex",))
    spec["cells"] = [{**spec["cells"][0], "seed": seed} for seed in range(300)]
    reads = []
    monkeypatch.setattr(type(plane.store), "get", counted(type(plane.store).get, reads))
    answer = submit(user, spec)
    assert (answer.status_code, answer.json()["total"]) == (202, 300)
    assert len([key for key in reads if "/photos/" in key or "/uploads/" in key]) <= 4
    assert [cell["labels"]["seed"] for cell in Walk(plane, user, answer.json()["id"]).cells()] == list(range(300))


def counted(get, reads: list[str]):
    def counting(self, key: str, *more):
        reads.append(key)
        return get(self, key, *more)

    return counting


@both_databases
def test_a_lost_ray_job_loses_its_cells_attempts_and_the_next_one_takes_them_up(plane, user, cluster, clock):
    walk = running(plane, user)
    first, second = (cell.job_id for cell in walk.brief().cells[:2])
    driver = walk.run(first)
    driver.beat("training", step=3, checkpoint_key="the checkpoint")
    cluster.jobs[walk.ray_job] = RayStatus.FAILED
    reconciler = Reconciler(plane)
    reconciler.round()
    assert (driver.job["status"], attempt_of(plane, first).reason) == ("queued", "cluster_lost")
    assert driver.beat("training", step=4).status_code == 409
    reconciler.round()
    clock.advance(60)
    reconciler.round()
    assert cluster.jobs == {walk.ray_job: RayStatus.FAILED, f"{walk.id}-a2": RayStatus.RUNNING}
    assert walk.call("POST", f"/cells/{second}").status_code == 409, "the first attempt claims nothing any more"
    again = Walk(plane, user, walk.id, 2).run(first)
    assert (again.number, again.fence) == (2, 2)
    assert again.call("GET").json()["resume_key"] == "the checkpoint"
    assert attempt_of(plane, first, 2).ray_submission_id == f"{walk.id}-a2"


def test_claims_are_of_this_group_alone_and_may_be_repeated(plane, user, cluster, clock):
    walk = running(plane, user)
    alone = started(plane, user)
    assert walk.call("POST", f"/cells/{alone.job_id}").status_code == 404
    first = walk.brief().cells[0].job_id
    assert walk.claim(first) == walk.claim(first) == ClaimedCell(attempt=1, fence=1, status="queued")
    driver = walk.run(first)
    driver.failed("worker_died")
    assert walk.claim(first) == ClaimedCell(status="queued"), "the attempt before is not closed yet"
    Reconciler(plane).round()
    assert walk.claim(first) == ClaimedCell(status="queued"), "it waits before it is tried again"
    clock.advance(6)
    assert walk.claim(first).attempt == 2


@both_databases
def test_one_cell_is_cancelled_without_the_others(plane, user, cluster):
    walk = running(plane, user)
    runs, waits = (cell.job_id for cell in walk.brief().cells[:2])
    driver = walk.run(runs)
    driver.beat("training", step=1)
    for job_id in (runs, waits):
        assert user.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    assert driver.beat("training", step=2).json() == {"desired": "cancel"}
    Reconciler(plane).round()
    assert cluster.jobs == {walk.ray_job: RayStatus.RUNNING}, "the shared Ray job is not stopped"
    assert [cell.is_unwanted for cell in walk.brief().cells] == [True, False, False, False]
    assert walk.claim(waits) == ClaimedCell(status="cancelled")
    driver.failed("worker_died")  # its process was ended from outside
    assert driver.job["status"] == "cancelled"


def test_a_cell_that_stands_still_is_told_to_the_groups_driver(plane, user, cluster, clock):
    walk = running(plane, user)
    driver = walk.run(walk.brief().cells[0].job_id)
    reconciler = Reconciler(plane)
    driver.beat("preparing")
    clock.advance(plane.settings.no_progress_limit_s + 1)
    driver.beat("preparing")
    walk.beat(0)
    reconciler.round()
    assert cluster.jobs[walk.ray_job] is RayStatus.RUNNING
    assert walk.brief().cells[0].is_unwanted
    driver.failed("worker_died", "it was ended")
    assert attempt_of(plane, driver.job_id).reason == "stalled"
    reconciler.round()
    clock.advance(60)
    assert walk.claim(driver.job_id).attempt == 2


def test_a_moving_cell_is_progress_of_its_group_and_none_is_not(plane, user, cluster, clock):
    walk = running(plane, user)
    driver = walk.run(walk.brief().cells[0].job_id)
    reconciler = Reconciler(plane)
    for step in range(1, 8):
        clock.advance(200)
        driver.beat("training", step=step)
        walk.beat(0)
        reconciler.round()
    assert cluster.jobs[walk.ray_job] is RayStatus.RUNNING
    for _ in range(8):
        clock.advance(100)
        walk.beat(0)
        reconciler.round()
    assert cluster.jobs[walk.ray_job] is RayStatus.STOPPED
    walk.call("POST", "/failed", reason="cancelled", detail="")
    assert walk.record["status"] == "queued", "stalled, not given up: a cell had moved"


def test_a_group_counts_as_one_and_its_cells_as_none(plane, user, cluster):
    walk = running(plane, user)
    for cell in walk.brief().cells[:2]:
        walk.run(cell.job_id)
    later = started(plane, user)
    assert later.job["status_detail"] == "Waiting for 1 job ahead."
    walk.call("POST", "/failed", reason="does_not_fit", detail="no device")
    cluster.jobs[walk.ray_job] = RayStatus.FAILED
    reconciler = Reconciler(plane)
    for _ in range(3):
        reconciler.round()
    assert later.ray_job in cluster.jobs
    assert walk.record["status"] == "failed"
    assert walk.record["states"] == {"cancelled": 4}, "no cell waits for a group that is over"


@both_databases
def test_a_cancelled_group_cancels_its_cells_and_keeps_its_models(plane, user, cluster):
    walk = running(plane, user)
    refs = walk.brief().cells
    walk.run(refs[0].job_id).publish()
    driver = walk.run(refs[1].job_id)
    driver.beat("training", step=1)
    assert user.http.post(f"/v1/groups/{walk.id}/cancel").json()["cancel_requested"]
    assert driver.beat("training", step=2).json() == walk.beat(1).json() == {"desired": "cancel"}
    assert walk.call("POST", f"/cells/{refs[2].job_id}").status_code == 409
    reconciler = Reconciler(plane)
    for _ in range(3):
        reconciler.round()
    assert cluster.jobs[walk.ray_job] is RayStatus.STOPPED
    record = walk.record
    assert (record["status"], record["states"]) == ("cancelled", {"cancelled": 3, "succeeded": 1})
    assert user.http.get(f"/v1/groups/{walk.id}/report").status_code == 409
    assert len(user.http.get("/v1/models").json()["models"]) == 1
    assert user.http.delete(f"/v1/groups/{walk.id}").status_code == 204
    sweep(plane)
    assert user.http.get(f"/v1/groups/{walk.id}").status_code == 404
    jobs = user.http.get("/v1/jobs").json()["jobs"]
    assert [job["group_id"] for job in jobs] == [None] * 4, "they stay"
    with plane.database.read() as session:
        assert session.get(Group, walk.id) is None


def test_a_waiting_group_is_deleted_with_the_wish_for_its_cells(plane, user):
    answer = submit(user, group_spec(user, plane))
    user.http.delete(f"/v1/groups/{answer.json()['id']}")
    sweep(plane)
    assert [job["status"] for job in user.http.get("/v1/jobs").json()["jobs"]] == ["cancelled"] * 4


def test_scores_are_shown_and_their_places_told_to_drivers_alone(plane, user, stranger):
    walk = running(plane, user)
    job_id = walk.brief().cells[2].job_id
    with plane.database.write() as session:
        for step in (400, 0):
            score = Score(step=step, suite="tiny", dino=step / 1000).model_dump(mode="json")
            session.add(StepScore(job_id=job_id, step=step, attempt=1, score=score, key=f"k{step}", sha256="s"))
    cell = walk.cells()[2]
    assert [(score["step"], score["dino"]) for score in cell["scores"]] == [(0, 0.0), (400, 0.4)]
    assert cell["score_keys"] == []
    told = CellPage.model_validate_json(walk.call("GET", "/cells").content)
    assert told.cells[2].score_keys == ["k0", "k400"]
    for path in ("", "/cells", "/report"):
        assert stranger.http.get(f"/v1/groups/{walk.id}{path}").status_code == 404
    assert stranger.http.get("/v1/groups").json()["groups"] == []
    assert [each["id"] for each in user.http.get("/v1/groups").json()["groups"]] == [walk.id]


def test_jobs_of_groups_are_started_by_nobody_else(plane, user, cluster: Cluster, clock: Clock):
    walk = running(plane, user)
    reconciler = Reconciler(plane)
    for _ in range(3):
        clock.advance(10)
        walk.beat()
        reconciler.round()
    assert cluster.submissions == 1
    with plane.database.read() as session:
        assert {job.attempt for job in session.query(Job)} == {0}
