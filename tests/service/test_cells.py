"""The walk over a group's cells against the real control plane: in this process, on tiny models, to the report."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from control_plane import Clock, Cluster, User, a_plane, a_user, http
from loopback import on_loopback
from PIL import Image
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_job import RECIPE
from tiny_suite import spec as suite_spec
from tiny_suite import write_tiny_suite
from world import SUBJECTS, render

from booth.contract.groups import CellPage
from booth_service import cell_walk, cells
from booth_service.beats import RunLine
from booth_service.control import base_models
from booth_service.control.database import Database
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import EncoderSuite, new_id
from booth_service.errors import AttemptEnded
from booth_service.settings import Settings
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

STEPS = 6


@dataclass
class Here:
    """Stands where an actor is: cells run in a thread of this process. `dies` says when it is lost like a process."""

    config: Settings
    run_cell: Callable[[Settings, str, int], int] = cells.run_cell
    ran: list[tuple[str, int]] = field(default_factory=list)
    dies: Callable[[str, int], bool] = lambda job_id, attempt: False
    ended: int = 0
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def start(self) -> Future[object]:
        return self.pool.submit(lambda: True)

    def run(self, job_id: str, attempt: int) -> Future[object]:
        self.ran.append((job_id, attempt))
        return self.pool.submit(self._run, job_id, attempt)

    def _run(self, job_id: str, attempt: int) -> object:
        if self.dies(job_id, attempt):
            raise ConnectionError("the actor died")
        return self.run_cell(self.config, job_id, attempt)

    def end(self) -> None:
        self.ended += 1


class Ticking(Clock):
    """A clock that is a minute later at each look, so that nothing waits to be tried again."""

    def __call__(self) -> Any:
        self.advance(0.5)
        return self.moment


@dataclass
class Machine:
    """A control plane with a base model and encoders that can be trained and scored with, and its tenant."""

    plane: Plane
    user: User
    settings: Settings
    cluster: Cluster
    photos: list[dict]

    def submit(self, arms: dict[str, dict], subjects: tuple[str, ...] = ("teapot",), **changes: Any) -> str:
        made = [
            {
                "subject": subject,
                "arm": arm,
                "values": {name: str(value) for name, value in dials.items()},
                "job": {
                    "class_noun": "teapot",
                    "token": "sks",
                    "images": self.photos,
                    "base_model": "real",
                    "seed": 1,
                    "options": {"scoring": SCORING},
                    **dials,
                },
            }
            for subject in subjects
            for arm, dials in arms.items()
        ]
        body = {"kind": "sweep", "name": "prior", "cells": made, "baseline": next(iter(arms)), **changes}
        answer = self.user.http.post("/v1/groups", json=body, headers={"Idempotency-Key": new_id("key")})
        assert answer.status_code == 202, answer.text
        Reconciler(self.plane).round()
        return str(answer.json()["id"])

    def walk(self, group_id: str, worker: Here, number: int = 1) -> None:
        line = RunLine(self.settings.api_url, self.settings.stack_secret, group_id, number)
        cells.run(line.group_brief(), line, self.settings, lambda: worker, 1)

    def record(self, group_id: str) -> dict:
        return self.user.http.get(f"/v1/groups/{group_id}").json()

    def cells(self, group_id: str) -> CellPage:
        return CellPage.model_validate_json(self.user.http.get(f"/v1/groups/{group_id}/cells").content)

    def report(self, group_id: str, number: int = 1) -> dict:
        prefix = keys.run("group", self.user.tenant_id, group_id)
        return json.loads(self.plane.store.get(keys.report_file(prefix, number, "report.json")))

    def reconcile(self) -> None:
        Reconciler(self.plane).round()


SCORING = {
    "steps": [0, 3, -1],
    "prompts": ["a photo of {0} {1} in the jungle", "a photo of {0} {1} on the beach"],
    "num_images": 2,
    "num_class_images": 2,
    "num_inference_steps": 2,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_walk, "TICK_S", 0.05)
    monkeypatch.setattr("booth_service.beats.BEAT_INTERVAL_S", 0.05)


@pytest.fixture
def machine(object_store: ObjectStore, tmp_path: Path) -> Iterator[Machine]:
    database = Database(f"sqlite:///{tmp_path}/booth.db")
    database.migrate()
    clock, cluster = Ticking(), Cluster()
    plane = a_plane(database, object_store, cluster, clock)
    with plane.database.write() as session:
        files = store_base(object_store, write_tiny_base(tmp_path / "tiny"))
        recipe = RECIPE.model_copy(update={"steps": STEPS, "encoders": "tiny", "checkpoint_interval_steps": 2})
        base_models.register(session, "real", recipe, files, default=False, now=clock())
        suite = store_base(object_store, write_tiny_suite(tmp_path / "suite"))
        row = {"spec": suite_spec(), "files": [file.model_dump() for file in suite], "source": "a test"}
        session.add(EncoderSuite(id=new_id("suite"), name="tiny", created_at=clock(), **row))
    with a_user(plane) as user, on_loopback(http(plane).app) as url:
        photos = [user.put(plane, png(number, tmp_path), f"{number}.png") for number in range(3)]
        settings = plane.settings.model_copy(
            update={
                "api_url": url,
                "s3_bucket": object_store.bucket,
                "s3_endpoint_url": object_store.client.meta.endpoint_url,
                "scratch_dir": str(tmp_path / "scratch"),
            }
        )
        yield Machine(plane, user, settings, cluster, photos)
    database.close()


def png(number: int, folder: Path) -> bytes:
    path = folder / f"{number}.png"
    image: Image.Image = render(list(SUBJECTS[0].scenes())[number])
    image.save(path)
    return path.read_bytes()


class reconciling:
    """The reconciler's rounds go on beside the block."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.over = machine, threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.over.wait(0.05):
            self.machine.reconcile()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def test_a_sweep_of_two_arms_ends_with_models_scores_and_a_report(machine: Machine) -> None:
    group = machine.submit({"prior": {}, "no prior": {"prior_loss_weight": 0}})
    worker = Here(machine.settings)
    with reconciling(machine):
        machine.walk(group, worker)
    record = machine.record(group)
    assert (record["status"], record["done"]) == ("succeeded", 2), record
    assert record["status_detail"] == "All 2 cells succeeded."
    found = machine.cells(group).cells
    assert [[score.step for score in cell.scores] for cell in found] == [[0, 3, STEPS]] * 2
    assert found[0].scores[0].dino == found[1].scores[0].dino, "one frozen base, one sampling seed"
    assert found[0].scores[2].dino != found[1].scores[2].dino
    models = {model["id"]: model for model in machine.user.http.get("/v1/models").json()["models"]}
    assert {cell.model_id for cell in found} == set(models)
    files = {file["name"]: file for file in machine.user.http.get(f"/v1/groups/{group}/report").json()["files"]}
    assert set(files) == {"report.json", "report.html", "sheet.png", "curves.png"}
    report = machine.report(group)
    assert [table["title"] for table in report["tables"]] == [
        "The paper's Table 3: prior preservation",
        "Means over 1 subject",
        "Differences to prior",
        "By subject",
    ]
    shown = [row["score"]["step"] for row in report["rows"] if row["score"]["pictures"]]
    assert shown == [0, STEPS, STEPS], "the first floor and both ends have their pictures"
    assert len(report["photos"]["teapot"]) == 3


def test_a_dead_worker_costs_its_cell_one_attempt_and_others_none(machine: Machine) -> None:
    group = machine.submit({"a": {}, "b": {"learning_rate": 1e-4}})
    first = machine.cells(group).cells[0].job_id
    worker = Here(machine.settings, run_cell=published, dies=lambda job_id, attempt: (job_id, attempt) == (first, 1))
    with reconciling(machine):
        machine.walk(group, worker)
    assert sorted(attempt for job_id, attempt in worker.ran if job_id == first) == [1, 2]
    assert len(worker.ran) == 3
    assert machine.record(group)["states"] == {"failed": 2}, "by the stand-in's own word"
    attempts = machine.user.http.get(f"/v1/jobs/{first}/events").json()["events"]
    assert any("A training process died" in event["message"] for event in attempts)


def published(config: Settings, job_id: str, number: int) -> int:
    """A cell that says at once that it cannot be trained, as a driver does."""
    from booth.contract.states import FailureReason
    from booth_service.beats import Line

    line = Line(config.api_url, config.stack_secret, job_id, number)
    line.failed(line.brief().fence, FailureReason.NOT_FINITE, "a test")
    return 3


def test_cells_that_are_over_are_not_run_again_and_a_group_of_failures_still_reports(machine: Machine) -> None:
    group = machine.submit({"a": {}, "b": {"learning_rate": 1e-4}})
    first = machine.cells(group).cells[0].job_id
    machine.user.http.post(f"/v1/jobs/{first}/cancel")
    worker = Here(machine.settings, run_cell=published)
    with reconciling(machine):
        machine.walk(group, worker)
    assert [attempt for _, attempt in worker.ran] == [1]
    assert machine.record(group)["states"] == {"cancelled": 1, "failed": 1}
    detail = machine.record(group)["status_detail"]
    assert detail.startswith("0 of 2 cells succeeded. The others, 1 times: ")
    said = machine.report(group)["warnings"]
    assert said[0].startswith("teapot, a: cancelled")
    assert said[1].startswith("teapot, b: failed: The loss stopped being a finite number. a test")


def test_a_worker_that_does_not_listen_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_walk, "LOOK_INTERVAL_S", 0.0)
    monkeypatch.setattr(cell_walk, "UNWANTED_GRACE_S", 0.0)
    group = machine.submit({"a": {}})
    job_id = machine.cells(group).cells[0].job_id
    stuck = threading.Event()

    def hang(config: Settings, job_id: str, number: int) -> int:
        machine.user.http.post(f"/v1/jobs/{job_id}/cancel")
        assert stuck.wait(60)
        raise ConnectionError("it was ended")

    worker = Here(machine.settings, run_cell=hang)
    monkeypatch.setattr(worker, "end", stuck.set)
    with reconciling(machine):
        machine.walk(group, worker)
    assert machine.user.http.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


def test_a_cancelled_group_ends_its_walk(machine: Machine) -> None:
    group = machine.submit({"a": {}, "b": {"learning_rate": 1e-4}})

    def cancelling(config: Settings, job_id: str, number: int) -> int:
        machine.user.http.post(f"/v1/groups/{group}/cancel")
        return published(config, job_id, number)

    worker = Here(machine.settings, run_cell=cancelling)
    with reconciling(machine), pytest.raises(AttemptEnded):
        machine.walk(group, worker)
    machine.cluster.jobs[f"{group}-a1"] = RayStatus.FAILED
    for _ in range(3):
        machine.reconcile()
    assert (len(worker.ran), machine.record(group)["status"]) == (1, "cancelled")
    assert machine.record(group)["states"] == {"cancelled": 2}


def test_a_control_plane_that_is_away_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    group = machine.submit({"a": {}})
    job_id = machine.cells(group).cells[0].job_id
    away = {"claim_cell": 2, "failed": 2}

    def sometimes(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*given: Any) -> Any:
            away[name] -= 1
            if away[name] >= 0:
                raise httpx2.ConnectError("refused")
            return call(*given)

        return answer

    monkeypatch.setattr(RunLine, "claim_cell", sometimes("claim_cell", RunLine.claim_cell))
    monkeypatch.setattr(cell_walk.Line, "failed", sometimes("failed", cell_walk.Line.failed))
    worker = Here(machine.settings, run_cell=published, dies=lambda job_id, attempt: attempt == 1)
    with reconciling(machine):
        machine.walk(group, worker)
    assert [attempt for _, attempt in worker.ran] == [1, 2], "the death was told before the cell was claimed again"
    assert machine.user.http.get(f"/v1/jobs/{job_id}").json()["attempt"] == 2
    assert max(away.values()) < 0


@pytest.mark.parametrize(
    ("devices", "serving", "at_once", "use_gpu", "places"),
    [
        (8, 1.0, None, True, 7),
        (8, 0.5, None, True, 7),
        (8, 0.0, 3, True, 3),
        (2, 0.0, None, False, 2),
        (2, 2, 9, False, 2),
    ],
)
def test_one_cell_for_each_device_that_serving_leaves(
    devices: int, serving: float, at_once: int | None, use_gpu: bool, places: int
) -> None:
    assert cell_walk.places_of(devices, serving, at_once, use_gpu=use_gpu) == places
