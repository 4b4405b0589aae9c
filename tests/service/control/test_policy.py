"""The table of decisions: every situation of an attempt, and what is done about it."""

from datetime import UTC, datetime, timedelta

import pytest

from booth.contract.states import Desired, FailureReason, JobState
from booth_service.control import policy
from booth_service.control.policy import Cancel, Claim, Close, End, Fail, Launch, RayStatus, Retry, Say, Stop, Wait
from booth_service.control.records import Attempt, AttemptState, Job
from booth_service.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)
SETTINGS = Settings(no_progress_limit_s=300, first_step_limit_s=420, max_attempts=3, max_running_jobs=1)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def decide(
    ray: RayStatus, desired: Desired = Desired.RUN, watching_since: datetime = LONG_AGO, phase: str = "", **attempt
):
    """The decision on an active, submitted attempt, changed by what is given."""
    row = {"state": AttemptState.ACTIVE, "n": 1, "created_at": ago(60), "submitted_at": ago(60)} | attempt
    return policy.decide(
        Job(desired=desired, progress={"phase": phase}), Attempt(**row), ray, SETTINGS, NOW, watching_since
    )


def beating(**more):
    return {"last_beat_at": ago(1), "last_progress_at": ago(1), "submitted_at": ago(900), "created_at": ago(900)} | more


@pytest.mark.parametrize(
    ("ray", "attempt", "decision"),
    [
        (RayStatus.UNKNOWN, {"submitted_at": None}, Launch()),
        (RayStatus.RUNNING, beating(), Wait()),
        (RayStatus.RUNNING, {}, Say("Starting on the cluster.")),
        (RayStatus.PENDING, {}, Say("Starting on the cluster.")),
        (RayStatus.UNREACHABLE, beating(), Wait()),
        (RayStatus.UNKNOWN, {"state": AttemptState.CLOSING}, Close()),
        (RayStatus.SUCCEEDED, {"state": AttemptState.CLOSING}, Close()),
        (RayStatus.RUNNING, {"state": AttemptState.CLOSING, "ended_at": ago(1)}, Wait()),
        (RayStatus.RUNNING, {"state": AttemptState.CLOSING, "ended_at": ago(31)}, Stop()),
        (RayStatus.UNREACHABLE, {"state": AttemptState.CLOSING, "ended_at": ago(31)}, Wait()),
        (RayStatus.RUNNING, {"stop_reason": FailureReason.STALLED}, Stop()),
        (RayStatus.STOPPED, {"stop_reason": FailureReason.STALLED}, End(FailureReason.STALLED)),
    ],
)
def test_situations(ray, attempt, decision):
    assert decide(ray, **attempt) == decision


@pytest.mark.parametrize("silent_for_s", [16, 10_000])
def test_a_cluster_that_does_not_answer_is_no_evidence_of_death(silent_for_s):
    quiet = {"last_beat_at": ago(silent_for_s), "last_progress_at": ago(silent_for_s)}
    assert isinstance(decide(RayStatus.UNREACHABLE, **beating(**quiet)), Say | Wait)
    assert isinstance(decide(RayStatus.UNREACHABLE, submitted_at=None), Say)


@pytest.mark.parametrize(
    ("ray", "reason"),
    [
        (RayStatus.UNKNOWN, FailureReason.CLUSTER_LOST),
        (RayStatus.FAILED, FailureReason.WORKER_DIED),
        (RayStatus.STOPPED, FailureReason.WORKER_DIED),
        (RayStatus.SUCCEEDED, FailureReason.INTERNAL),
    ],
)
def test_a_ray_job_that_is_gone_without_a_word_ends_the_attempt(ray, reason):
    decision = decide(ray)
    assert isinstance(decision, End)
    assert decision.reason is reason
    assert reason.is_retryable


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        ({"submitted_at": ago(301), "created_at": ago(301)}, FailureReason.STALLED),
        (beating(last_beat_at=ago(301)), FailureReason.STALLED),
        (beating(last_progress_at=ago(301)), FailureReason.STALLED),
        (beating(training_at=ago(421), last_progress_at=ago(421)), FailureReason.NO_FIRST_STEP),
        (beating(training_at=ago(500), first_step_at=ago(301), last_progress_at=ago(301)), FailureReason.STALLED),
    ],
)
def test_silence_beyond_its_limit_stops_the_attempt(attempt, reason):
    decision = decide(RayStatus.RUNNING, **attempt)
    assert isinstance(decision, Stop)
    assert decision.reason is reason


@pytest.mark.parametrize(
    "attempt",
    [
        {"submitted_at": ago(299), "created_at": ago(900)},
        beating(last_beat_at=ago(299)),
        beating(last_progress_at=ago(299)),
        beating(training_at=ago(419), last_progress_at=ago(419)),
    ],
)
def test_silence_within_its_limit_is_borne(attempt):
    assert not isinstance(decide(RayStatus.RUNNING, **attempt), Stop)


def test_silence_while_nobody_listened_does_not_count():
    quiet = beating(last_beat_at=ago(5000), last_progress_at=ago(5000))
    assert decide(RayStatus.RUNNING, watching_since=ago(10), **quiet) == Wait()
    assert isinstance(decide(RayStatus.RUNNING, watching_since=ago(301), **quiet), Stop)


@pytest.mark.parametrize(
    ("ray", "attempt", "decision"),
    [
        (RayStatus.RUNNING, beating(), Stop(FailureReason.CANCELLED)),
        (RayStatus.UNKNOWN, {"submitted_at": None}, End(FailureReason.CANCELLED)),
        (RayStatus.UNREACHABLE, {"submitted_at": None}, End(FailureReason.CANCELLED)),
        (RayStatus.STOPPED, beating(), End(FailureReason.CANCELLED)),
        (RayStatus.UNREACHABLE, beating(), Wait()),
    ],
)
def test_a_cancelled_attempt_is_stopped_and_over_once_ray_says_so(ray, attempt, decision):
    assert decide(ray, desired=Desired.CANCEL, **attempt) == decision


@pytest.mark.parametrize("reason", list(FailureReason))
def test_outcomes_follow_the_one_table_of_reasons(reason):
    budget = SETTINGS.max_cluster_losses if reason is FailureReason.CLUSTER_LOST else SETTINGS.max_attempts
    assert SETTINGS.max_cluster_losses > SETTINGS.max_attempts
    for failures in range(1, budget + 1):
        result = policy.outcome(reason, failures, SETTINGS)
        if reason is FailureReason.CANCELLED:
            assert result == Cancel()
        elif reason.is_retryable and failures < budget:
            assert isinstance(result, Retry)
        else:
            assert result == Fail(reason)


def test_retries_wait_longer_each_time():
    delays = [policy.outcome(FailureReason.STALLED, failures, SETTINGS).delay_s for failures in (1, 2)]
    assert delays == sorted(set(delays))


def queue(*not_before: datetime | None) -> list[Job]:
    return [Job(id=f"job-{n}", state=JobState.QUEUED, not_before=moment) for n, moment in enumerate(not_before)]


def test_jobs_start_in_order_and_the_others_are_told_how_many_are_ahead():
    decisions = policy.decide_queue(queue(None, None, None), 0, SETTINGS, NOW)
    assert [(job.id, decision) for job, decision in decisions] == [
        ("job-0", Claim()),
        ("job-1", Say("Waiting for 1 job ahead.")),
        ("job-2", Say("Waiting for 2 jobs ahead.")),
    ]


def test_a_job_that_must_wait_before_its_retry_holds_nobody_up():
    decisions = policy.decide_queue(queue(NOW + timedelta(seconds=5), None), 0, SETTINGS, NOW)
    assert [(job.id, decision) for job, decision in decisions] == [("job-1", Claim())]


def test_running_attempts_take_places():
    [(_, decision)] = policy.decide_queue(queue(None), 1, SETTINGS, NOW)
    assert decision == Say("Waiting for 1 job ahead.")
    two = SETTINGS.model_copy(update={"max_running_jobs": 2})
    [(_, decision)] = policy.decide_queue(queue(None), 1, two, NOW)
    assert decision == Claim()
