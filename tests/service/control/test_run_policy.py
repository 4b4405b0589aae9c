"""What is done with an attempt of a generation, and how large its blocks are. What jobs do too is in test_policy."""

from datetime import UTC, datetime, timedelta

import pytest

from booth.contract.states import Desired, FailureReason
from booth_service.control import run_policy
from booth_service.control.policy import Close, End, Launch, RayStatus, Say, Stop, Wait
from booth_service.control.records import AttemptState, Generation, RunAttempt
from booth_service.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(no_progress_limit_s=300, first_step_limit_s=420)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def decide(ray=RayStatus.RUNNING, desired=Desired.RUN, gone=False, watching_since=ago(90_000), **attempt):
    row = {"state": AttemptState.ACTIVE, "n": 1, "created_at": ago(900), "submitted_at": ago(900)} | attempt
    return run_policy.decide(
        Generation(desired=desired), RunAttempt(**row), ray, SETTINGS, NOW, watching_since, is_model_gone=gone
    )


def drawing(moved_s: float = 1, **more):
    return {"last_beat_at": ago(1), "last_progress_at": ago(moved_s), "first_at": ago(800)} | more


@pytest.mark.parametrize(
    ("situation", "decision"),
    [
        ({"ray": RayStatus.UNKNOWN, "submitted_at": None}, Launch()),
        ({"submitted_at": ago(60), "created_at": ago(60)}, Say("Starting on the cluster.")),
        (drawing(), Wait()),
        (drawing(299), Wait()),
        (drawing(301), Stop(FailureReason.STALLED, "no picture for 300 s")),
        (drawing(301, watching_since=ago(10)), Wait()),
        (drawing(last_beat_at=ago(301)), Stop(FailureReason.STALLED, "the driver has said nothing for 300 s")),
        (drawing(419, first_at=None), Wait()),
        (drawing(421, first_at=None), Stop(FailureReason.NO_FIRST_STEP, "no picture within 420 s")),
        (drawing(gone=True), Stop(FailureReason.MODEL_DELETED)),
        ({"gone": True, "ray": RayStatus.UNKNOWN, "submitted_at": None}, End(FailureReason.MODEL_DELETED)),
        (drawing(gone=True, stop_reason=FailureReason.MODEL_DELETED), Stop()),
        (drawing(gone=True, desired=Desired.CANCEL), Stop(FailureReason.CANCELLED)),
        (drawing(gone=True, state=AttemptState.CLOSING, ray=RayStatus.STOPPED), Close()),
        (
            drawing(gone=True, ray=RayStatus.FAILED),
            End(FailureReason.WORKER_DIED, "the driver's Ray job is failed and did not say why"),
        ),
    ],
)
def test_situations(situation, decision):
    assert decide(**situation) == decision


@pytest.mark.parametrize(
    ("width", "height", "size"), [(64, 64, 4), (1024, 1024, 4), (1448, 1448, 2), (2048, 2048, 1), (2048, 1024, 2)]
)
def test_a_block_is_the_largest_batch_of_such_pictures(width, height, size):
    settings = Settings(serving_batch_size=4, serving_batch_pixels=4 * 2**20)
    assert run_policy.block_size(settings, width, height) == size
    small = Settings(serving_batch_size=4, serving_batch_pixels=64 * 64)
    assert run_policy.block_size(small, 512, 512) == 1
