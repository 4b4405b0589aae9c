"""The loop against a cluster that loses, hangs and goes away."""

import pytest
from control_plane import started

from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Attempt
from booth_service.storage import keys


def test_rounds_repeated_submit_once(plane, user, cluster):
    started(plane, user)
    reconciler = Reconciler(plane)
    for _ in range(3):
        reconciler.round()
    assert cluster.submissions == 1


def test_an_intent_that_was_never_submitted_is_submitted_later(plane, user, cluster):
    cluster.is_away = True
    driver = started(plane, user)
    assert driver.job["status_detail"].startswith("The Ray cluster does not")
    assert driver.job["attempt"] == 1
    cluster.is_away = False
    Reconciler(plane).round()
    assert cluster.jobs == {driver.ray_job: RayStatus.RUNNING}


def test_a_job_cancelled_while_the_cluster_is_away_never_runs(plane, user, cluster):
    cluster.is_away = True
    driver = started(plane, user)
    user.http.post(f"/v1/jobs/{driver.job_id}/cancel")
    reconciler = Reconciler(plane)
    reconciler.round()
    assert driver.job["status"] == "cancelled"
    cluster.is_away = False
    reconciler.round()
    assert cluster.submissions == 0


def test_a_new_cluster_gets_the_job_as_a_new_attempt(plane, user, cluster, clock):
    driver = started(plane, user)
    driver.beat("training", step=3)
    cluster.jobs.clear()
    reconciler = Reconciler(plane)
    reconciler.round()
    assert driver.job["status"] == "queued"
    assert "cluster" in driver.job["status_detail"]
    clock.advance(60)
    for _ in range(2):
        reconciler.round()
    assert cluster.jobs == {f"{driver.job_id}-a2": RayStatus.RUNNING}
    assert driver.beat("training", step=4).status_code == 409


def test_a_cluster_that_is_away_for_hours_costs_no_attempt(plane, user, cluster, clock):
    driver = started(plane, user)
    driver.beat("training", step=3)
    cluster.is_away = True
    reconciler = Reconciler(plane)
    for _ in range(10):
        clock.advance(3600)
        reconciler.round()
    assert (driver.job["status"], driver.job["attempt"]) == ("training", 1)
    cluster.is_away = False
    assert driver.beat("training", step=4).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "reason", "status"), [(301, "stalled", "queued"), (421, "no_first_step", "failed")]
)
def test_a_silent_attempt_is_stopped_for_its_reason(plane, user, cluster, clock, seconds, reason, status):
    driver = started(plane, user)
    reconciler = Reconciler(plane)
    driver.beat("training" if reason == "no_first_step" else "preparing")
    clock.advance(seconds - 2)
    driver.beat("training" if reason == "no_first_step" else "preparing")  # it beats, but does not move
    reconciler.round()
    assert cluster.jobs[driver.ray_job] is RayStatus.RUNNING
    clock.advance(3)
    reconciler.round()
    assert cluster.jobs[driver.ray_job] is RayStatus.STOPPED
    assert driver.beat("training").json() == {"desired": "cancel"}
    assert driver.failed("cancelled").status_code == 200  # the driver only knows that it was stopped
    assert driver.job["status"] == status
    with plane.database.read() as session:
        assert session.get_one(Attempt, (driver.job_id, 1)).reason == reason


def test_the_log_of_an_ended_attempt_outlives_the_cluster(plane, user, cluster):
    driver = started(plane, user)
    cluster.printed[driver.ray_job] = "the last words\n"
    driver.failed("not_finite")
    cluster.jobs[driver.ray_job] = RayStatus.FAILED
    Reconciler(plane).round()
    cluster.is_away = True
    log = user.http.get(f"/v1/jobs/{driver.job_id}/logs").json()
    assert (log["text"], log["complete"]) == ("the last words\n", True)
    assert plane.store.get(keys.attempt_log(user.tenant_id, driver.job_id, 1)) == b"the last words\n"


def test_a_log_lost_with_its_cluster_says_so(plane, user, cluster):
    driver = started(plane, user)
    driver.failed("not_finite")
    cluster.jobs.clear()
    Reconciler(plane).round()
    assert "lost" in user.http.get(f"/v1/jobs/{driver.job_id}/logs").json()["text"]


def test_jobs_run_one_at_a_time_in_order_and_say_so(plane, user, cluster):
    first, second = started(plane, user), started(plane, user)
    assert list(cluster.jobs) == [first.ray_job]
    assert second.job["status_detail"] == "Waiting for 1 job ahead."
    first.failed("bad_photos")
    cluster.jobs[first.ray_job] = RayStatus.FAILED
    Reconciler(plane).round()
    assert list(cluster.jobs) == [first.ray_job, second.ray_job]


def test_one_jobs_error_stops_no_other(plane, user, cluster, clock):
    plane = plane.__class__(**{**vars(plane), "settings": plane.settings.model_copy(update={"max_running_jobs": 2})})
    broken, sound = started(plane, user), started(plane, user)
    cluster.jobs[sound.ray_job] = RayStatus.FAILED
    original = cluster.status
    cluster.status = lambda ray_job: 1 / 0 if ray_job == broken.ray_job else original(ray_job)
    Reconciler(plane).round()
    assert sound.job["status"] == "queued"


def test_a_driver_that_does_not_exit_is_stopped_after_a_while(plane, user, cluster, clock):
    driver = started(plane, user)
    driver.publish()
    reconciler = Reconciler(plane)
    reconciler.round()
    assert cluster.jobs[driver.ray_job] is RayStatus.RUNNING
    clock.advance(31)
    reconciler.round()
    assert cluster.jobs[driver.ray_job] is RayStatus.STOPPED
    assert driver.job["status"] == "succeeded"


def test_the_thread_runs_rounds_until_it_is_stopped(plane, user, cluster):
    job_id = user.submit(plane).json()["id"]
    fast = plane.settings.model_copy(update={"reconcile_interval_s": 0.01})
    reconciler = Reconciler(plane.__class__(**{**vars(plane), "settings": fast}))
    reconciler.start()
    while not cluster.jobs:  # the test's own time limit ends a loop that never acts
        pass
    reconciler.stop()
    assert list(cluster.jobs) == [f"{job_id}-a1"]
