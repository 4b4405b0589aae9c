"""Transitions: fences, retries, cancelling, beats. Every one through the API or the reconciler, as in production."""

import pytest
from control_plane import Driver, both_databases, next_attempt, started

from booth_service.control import lifecycle
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Attempt


@both_databases
def test_a_newer_attempt_silences_the_older(plane, user, cluster, clock):
    old = started(plane, user)
    old.failed("worker_died")
    new = next_attempt(plane, cluster, clock, old)
    assert new.beat("preparing").json() == {"desired": "run"}
    answers = [old.beat("training", step=9), old.failed("internal"), old.publish(), old.call("GET")]
    assert [answer.status_code for answer in answers] == [409] * 4
    job = new.job
    assert (job["status"], job["attempt"], job["progress"]["step"]) == ("preparing", 2, 0)
    assert new.publish().status_code == 200


def test_a_fence_of_the_future_is_refused_too(plane, user):
    driver = started(plane, user)
    driver.fence = 2
    assert driver.beat("preparing").status_code == 409


def test_an_attempt_that_is_over_has_no_say(plane, user):
    driver = started(plane, user)
    driver.failed("bad_photos")
    assert driver.beat("training").status_code == 409
    assert driver.call("GET").status_code == 409
    assert driver.publish().status_code == 409
    assert driver.job["status"] == "failed"


def test_a_failure_is_told_with_its_remedy(plane, user):
    driver = started(plane, user)
    driver.failed("not_finite", "loss is nan at step 3")
    error = driver.job["error"]
    assert error["reason"] == "not_finite"
    assert error["detail"] == "loss is nan at step 3"
    assert "learning_rate" in error["remedy"]


def test_saying_twice_that_it_failed_changes_nothing(plane, user):
    driver = started(plane, user)
    assert driver.failed("not_finite").status_code == 200
    events = driver.events()
    assert driver.failed("internal").status_code == 200
    assert driver.job["error"]["reason"] == "not_finite"
    assert driver.events() == events


def test_the_next_attempt_waits_until_the_last_one_is_gone(plane, user, cluster, clock):
    driver = started(plane, user)
    driver.failed("worker_died")
    clock.advance(20)
    reconciler = Reconciler(plane)
    reconciler.round()
    assert list(cluster.jobs) == [driver.ray_job]  # its Ray job still runs
    cluster.jobs[driver.ray_job] = RayStatus.FAILED
    reconciler.round()
    reconciler.round()
    assert f"{driver.job_id}-a2" in cluster.jobs


def test_restarts_of_the_cluster_do_not_use_up_a_healthy_jobs_attempts(plane, user, cluster, clock):
    driver = started(plane, user)
    for _ in range(plane.settings.max_attempts):
        driver.failed("cluster_lost")
        driver = next_attempt(plane, cluster, clock, driver)
    for _ in range(plane.settings.max_attempts - 1):
        driver.failed("worker_died")
        assert driver.job["status"] == "queued"
        driver = next_attempt(plane, cluster, clock, driver)
    driver.failed("worker_died")
    assert driver.job["error"]["reason"] == "worker_died"


def test_no_attempt_is_claimed_while_another_may_still_run(plane, user, clock):
    driver = started(plane, user)
    driver.failed("worker_died")
    with plane.database.write() as session:
        assert lifecycle.claim(session, driver.job_id, clock()) is None


def test_attempts_end_with_their_budget(plane, user, cluster, clock):
    driver = started(plane, user)
    for _ in range(2):
        driver.failed("worker_died")
        assert driver.job["status"] == "queued"
        assert "Trying again" in driver.job["status_detail"]
        driver = next_attempt(plane, cluster, clock, driver)
    driver.failed("worker_died", "the third time")
    assert driver.job["status"] == "failed"
    assert driver.job["attempt"] == 3
    assert driver.job["error"]["detail"] == "the third time"


def test_the_next_attempt_resumes_from_the_last_checkpoint(plane, user, cluster, clock):
    driver = started(plane, user)
    assert driver.call("GET").json()["resume_key"] is None
    driver.beat("training", step=4, checkpoint_key="some/manifest")
    driver.beat("training", step=5)
    driver.failed("worker_died")
    assert next_attempt(plane, cluster, clock, driver).call("GET").json()["resume_key"] == "some/manifest"


def test_cancelling_reaches_the_driver_and_ends_when_ray_says_so(plane, user, cluster):
    driver = started(plane, user)
    driver.beat("training")
    answer = user.http.post(f"/v1/jobs/{driver.job_id}/cancel").json()
    assert (answer["status"], answer["cancel_requested"]) == ("training", True)
    assert driver.beat("training", step=1).json() == {"desired": "cancel"}
    assert driver.job["status_detail"] == "Cancelling."
    reconciler = Reconciler(plane)
    reconciler.round()
    assert cluster.jobs[driver.ray_job] is RayStatus.STOPPED
    reconciler.round()
    assert driver.job["status"] == "cancelled"
    assert driver.job["error"] is None


def test_a_driver_that_stops_because_it_was_asked_to_makes_the_job_cancelled(plane, user):
    driver = started(plane, user)
    user.http.post(f"/v1/jobs/{driver.job_id}/cancel")
    driver.failed("worker_died", "a rank was ended")
    assert driver.job["status"] == "cancelled"


def test_a_model_of_a_job_that_was_cancelled_is_not_published(plane, user):
    driver = started(plane, user)
    user.http.post(f"/v1/jobs/{driver.job_id}/cancel")
    assert driver.publish().status_code == 409
    assert user.http.get("/v1/models").json()["models"] == []


def test_cancelling_between_two_attempts_is_immediate(plane, user):
    driver = started(plane, user)
    driver.failed("worker_died")
    assert user.http.post(f"/v1/jobs/{driver.job_id}/cancel").json()["status"] == "cancelled"


def test_cancelling_twice_is_one_request(plane, user):
    driver = started(plane, user)
    user.http.post(f"/v1/jobs/{driver.job_id}/cancel")
    events = driver.events()
    assert user.http.post(f"/v1/jobs/{driver.job_id}/cancel").status_code == 202
    assert driver.events() == events


def test_a_driver_that_says_it_was_cancelled_when_nobody_asked_is_tried_again(plane, user):
    driver = started(plane, user)
    driver.failed("cancelled")
    assert driver.job["status"] == "queued"


def test_a_state_never_goes_back_and_is_never_final_by_a_beat(plane, user):
    driver = started(plane, user)
    driver.beat("training", step=2)
    driver.beat("preparing", step=2, phase="training")
    assert driver.job["status"] == "training"
    assert [driver.beat(state).status_code for state in ("succeeded", "failed", "queued")] == [400] * 3


def test_a_final_state_is_never_left(plane, user, clock):
    job_id = user.submit(plane).json()["id"]
    user.http.post(f"/v1/jobs/{job_id}/cancel")
    with plane.database.write() as session:
        assert lifecycle.claim(session, job_id, clock()) is None
        job = lifecycle.owned_job(session, user.tenant_id, job_id)
        with pytest.raises(AssertionError):
            lifecycle._finish(session, job, clock(), job.state, "again")


def test_beats_tell_state_phase_note_and_warning_once_each(plane, user):
    driver = started(plane, user)
    before = len(driver.events())
    driver.beat("preparing", phase="class images", note="4 of 64 are reused", warning="fewer ranks than asked")
    told = [(event["kind"], event["message"]) for event in driver.events()[before:]]
    assert told == [
        ("state", "Preparing: class images, 0 of 10."),
        ("note", "4 of 64 are reused"),
        ("warning", "fewer ranks than asked"),
    ]
    assert driver.job["status_detail"] == "4 of 64 are reused"
    assert driver.job["warnings"][-1] == "fewer ranks than asked"


def test_progress_is_always_stored_and_told_every_two_seconds(plane, user, clock):
    driver = started(plane, user)
    driver.beat("training", step=0)
    before = len(driver.events())
    for step in range(1, 9):
        clock.advance(0.5)
        driver.beat("training", step=step)
        assert driver.job["progress"]["step"] == step
    assert len(driver.events()) - before == 2


def attempt_of(plane, driver: Driver) -> Attempt:
    with plane.database.read() as session:
        return session.get_one(Attempt, (driver.job_id, driver.number))


def test_the_first_step_counts_from_where_training_began(plane, user, clock):
    driver = started(plane, user)
    driver.beat("training", step=200, phase="starting ranks")
    began = clock()
    clock.advance(5)
    driver.beat("training", step=200)
    row = attempt_of(plane, driver)
    assert (row.training_at, row.first_step_at) == (began, None)  # a resumed job has made no step of its own yet
    clock.advance(5)
    driver.beat("training", step=201)
    assert attempt_of(plane, driver).first_step_at == clock()


def test_only_movement_counts_as_progress(plane, user, clock):
    driver = started(plane, user)
    driver.beat("training", step=1)
    moved = clock()
    clock.advance(30)
    driver.beat("training", step=1)
    row = attempt_of(plane, driver)
    assert (row.last_progress_at, row.last_beat_at) == (moved, clock())
