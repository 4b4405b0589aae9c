"""Leases of class-image sets: one attempt makes a set, the others wait; what ends an attempt frees its sets."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from control_plane import Driver, both_databases, next_attempt, started

from booth_service.control import class_sets
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler

ADDRESS = "a" * 32


@pytest.fixture
def plane(plane: Plane) -> Plane:
    """Eight jobs may run beside each other."""
    return replace(plane, settings=plane.settings.model_copy(update={"max_running_jobs": 8}))


def claim(driver: Driver, address: str = ADDRESS):
    return driver.call("POST", f"/class-sets/{address}")


def release(driver: Driver, address: str = ADDRESS):
    return driver.call("DELETE", f"/class-sets/{address}")


def holder(driver: Driver, address: str = ADDRESS) -> str | None:
    return claim(driver, address).json()["holder"]


@both_databases
def test_one_makes_a_set_and_the_others_hear_who(plane, user):
    first, second = started(plane, user), started(plane, user)
    assert holder(first) is None
    assert holder(second) == f"job {first.job_id}"
    assert holder(first) is None, "asking again changes nothing"
    assert holder(second, "b" * 32) is None, "another set is free"
    assert release(second).status_code == 200
    assert holder(second) == f"job {first.job_id}", "what is not yours you cannot give back"
    release(first)
    assert holder(second) is None
    assert holder(first) == f"job {second.job_id}"


@both_databases
def test_of_many_at_the_same_moment_one_gets_it(plane, user):
    drivers = [started(plane, user) for _ in range(6)]

    def ask(driver: Driver) -> str | None:
        with plane.database.write() as session:
            return class_sets.claim(session, driver.job_id, 1, ADDRESS, plane.now(), is_shared=False)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, drivers))
    (winner,) = [driver for driver, answer in zip(drivers, answers, strict=True) if answer is None]
    assert {answer for answer in answers if answer} == {f"job {winner.job_id}"}


@both_databases
def test_a_lease_ends_with_its_attempt(plane, user, cluster, clock):
    first, second = started(plane, user), started(plane, user)
    assert holder(first) is None
    cluster.jobs[first.ray_job] = RayStatus.FAILED
    assert holder(second) == f"job {first.job_id}", "nobody has seen yet that it is dead"
    Reconciler(plane).round()
    assert holder(second) is None
    assert claim(first).status_code == 409, "an attempt that is over takes nothing"
    clock.advance(60)
    again = next_attempt(plane, cluster, clock, first)
    assert holder(again) == f"job {second.job_id}"


def test_a_job_that_published_holds_nothing_more(plane, user):
    first, second = started(plane, user), started(plane, user)
    assert holder(first) is None
    first.beat("publishing")
    assert first.publish().status_code == 200
    assert holder(second) is None


def test_tenants_wait_for_each_other_only_where_they_share_and_learn_nothing(plane, user, stranger):
    mine, theirs = started(plane, user), started(plane, stranger)
    assert holder(mine) is None
    assert holder(theirs) is None
    object.__setattr__(plane, "settings", plane.settings.model_copy(update={"share_class_images": True}))
    assert holder(mine) is None
    assert holder(theirs) == "another tenant's job"
    assert mine.call("GET").json()["share_class_images"] is True


def test_an_attempt_speaks_for_itself_with_a_set_that_can_be(plane, user):
    driver = started(plane, user)
    assert claim(driver, "../x").status_code in (404, 405)
    assert claim(driver, "A" * 32).status_code == 422
    driver.number = 2
    assert claim(driver).status_code == 404
    token = {"Authorization": "Bearer none"}
    url = f"/internal/attempts/{driver.job_id}/1/class-sets/{ADDRESS}"
    assert user.http.post(url, headers=token).status_code == 401


def test_waiting_for_another_job_is_no_stall(plane, user, clock):
    driver, reconciler = started(plane, user), Reconciler(plane)
    minutes = 3 * int(plane.settings.no_progress_limit_s) // 60

    def minute_by_minute(phase: str) -> set[str | None]:
        said = set()
        for _ in range(minutes):
            clock.advance(60)
            said.add(driver.beat("preparing", phase=phase).json().get("desired"))
            reconciler.round()
        return said

    assert minute_by_minute("waiting for class images") == {"run"}
    assert "cancel" in minute_by_minute("class images"), "making them without getting on is a stall"
