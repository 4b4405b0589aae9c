"""Learning rates by optimizer step."""

import pytest
from tiny_job import PARAMS

from booth_service.training.schedule import learning_rates

JOB = PARAMS.model_copy(
    update={"steps": 10, "lr_warmup_steps": 4, "learning_rate": 1.0, "text_encoder_learning_rate": 0.5}
)


def rates(**changes) -> list[float]:
    return [learning_rates(JOB.model_copy(update=changes), step)[0] for step in range(10)]


def test_both_rates_warm_up_and_stay() -> None:
    assert rates() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert [learning_rates(JOB, step)[1] for step in (0, 3, 9)] == [0.125, 0.5, 0.5]
    assert rates(lr_warmup_steps=0) == [1] * 10


def test_linear_and_cosine_reach_zero_after_the_last_step() -> None:
    assert rates(lr_schedule="linear")[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    cosine = rates(lr_schedule="cosine")
    assert cosine[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert cosine[7] == pytest.approx(0.5)
    assert 0 < cosine[9] < 0.1


def test_the_text_encoder_stops_at_its_step_and_the_unet_goes_on() -> None:
    job = JOB.model_copy(update={"text_encoder_stop_step": 6})
    assert [learning_rates(job, step) for step in (5, 6)] == [(1.0, 0.5), (1.0, 0.0)]
