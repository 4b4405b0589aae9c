"""The layout of a job is a pure function of numbers."""

import pytest

from booth_service.errors import DoesNotFit
from booth_service.plan import Devices, Plan, plan, state_bytes

SD15_PARAMETERS = 982_000_000


def layout(devices: Devices, train_batch_size: int = 1, **changes: float) -> Plan:
    settings = {"with_prior": True, "trained_parameters": SD15_PARAMETERS, "serving_gpus": 0.0, "max_ranks": 0}
    return plan(devices, train_batch_size=train_batch_size, **{**settings, **changes})


@pytest.mark.parametrize(
    ("cpus", "batch", "prior", "ranks", "rows"),
    [
        (2, 1, True, 2, 1),
        (2, 4, True, 2, 4),
        (3, 4, True, 2, 4),
        (8, 4, True, 8, 1),
        (2, 1, False, 1, 1),
        (16, 3, True, 6, 1),
    ],
)
def test_ranks_divide_the_rows_of_a_step(cpus: int, batch: int, prior: bool, ranks: int, rows: int) -> None:
    chosen = layout(Devices(cpus, 0), batch, with_prior=prior)
    assert (chosen.ranks, chosen.micro_batch_size) == (ranks, rows)
    assert chosen.ranks * chosen.micro_batch_size == batch * (2 if prior else 1)


def test_serving_keeps_its_gpus() -> None:
    chosen = layout(Devices(64, 8, 80 * 2**30), 4, serving_gpus=2)
    assert (chosen.ranks, chosen.use_gpu) == (4, True)
    with pytest.raises(DoesNotFit, match="1 GPUs, of which serving holds 1"):
        layout(Devices(64, 1, 80 * 2**30), serving_gpus=1)


def test_the_lowest_stage_that_fits_is_taken() -> None:
    assert layout(Devices(8, 8, 80 * 2**30), 4).zero_stage == 1
    assert layout(Devices(8, 8, 10 * 2**30), 4).zero_stage == 2
    with pytest.raises(DoesNotFit, match=r"0\.98 billion .* 1 GPUs, which have 16 GiB"):
        layout(Devices(8, 1, 16 * 2**30), 4)
    assert state_bytes(SD15_PARAMETERS, 1, 1) == state_bytes(SD15_PARAMETERS, 1, 2) == 18 * SD15_PARAMETERS


def test_fewer_ranks_than_possible_are_said() -> None:
    assert layout(Devices(8, 0), 4).fewer_ranks_than_rows is None
    assert "2 of 8 possible ranks" in (layout(Devices(2, 0), 4).fewer_ranks_than_rows or "")
    assert layout(Devices(8, 0), 4, max_ranks=2).fewer_ranks_than_rows is None
