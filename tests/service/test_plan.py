"""The layout of a job is a pure function of numbers."""

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from benchmarks.chooser import BY_HAND, agreement, chosen_by_the_planner
from hypothesis import given
from hypothesis import strategies as st

from booth_service.errors import DoesNotFit
from booth_service.plan import GB, WAYS, WAYS_OF_ONE_RANK, Devices, Plan, Way, Work, plan
from booth_service.plan_sizes import ModelSizes, line, sizes_of_family

SD15, SDXL = sizes_of_family("sd15"), sizes_of_family("sdxl")


def work(train_batch_size: int = 1, with_prior: bool = True, **changes) -> Work:
    return replace(Work(SD15, train_batch_size, with_prior, resolution=512), **changes)


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
    chosen = plan(Devices(cpus, 0), work(batch, prior))
    assert (chosen.ranks, chosen.micro_batch_size) == (ranks, rows)
    assert chosen.ranks * chosen.micro_batch_size == batch * (2 if prior else 1)


def test_a_cpu_holds_what_it_is_given() -> None:
    """Host memory is not counted, so nothing is traded for it; one rank needs no engine."""
    assert plan(Devices(1, 0), work(4)).zero_stage == 0
    chosen = plan(Devices(2, 0), work(4, sizes=SDXL))
    assert (chosen.zero_stage, chosen.activation_checkpointing, chosen.offload_optimizer) == (1, False, False)
    assert (chosen.available_bytes, chosen.use_gpu) == (0, False)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_operator_may_ask_for_a_higher_stage(stage: int) -> None:
    assert plan(Devices(2, 0), work(4), min_zero_stage=stage).zero_stage == stage
    assert plan(Devices(2, 2, 80 * GB), work(4), min_zero_stage=stage).zero_stage == stage
    assert plan(Devices(1, 0), work(4), min_zero_stage=stage).zero_stage == 0, "one rank has nobody to share with"


def test_serving_keeps_its_gpus() -> None:
    chosen = plan(Devices(64, 8, 80 * GB), work(4), serving_gpus=2)
    assert (chosen.ranks, chosen.use_gpu) == (4, True)
    with pytest.raises(DoesNotFit, match="1 GPUs, of which serving holds 1"):
        plan(Devices(64, 1, 80 * GB), work(), serving_gpus=1)
    with pytest.raises(DoesNotFit, match=r"0\.5 CPUs; training needs at least one whole device"):
        plan(Devices(0.5, 0), work())


def test_fewer_ranks_than_possible_are_said() -> None:
    assert plan(Devices(8, 0), work(4)).fewer_ranks_than_rows is None
    assert "2 of 8 possible ranks" in (plan(Devices(2, 0), work(4)).fewer_ranks_than_rows or "")
    assert plan(Devices(8, 0), work(4), max_ranks=2).fewer_ranks_than_rows is None


def test_more_devices_than_rows_stay_free() -> None:
    """Two rows keep two of eight GPUs busy; more ranks than rows would have nothing to do."""
    chosen = plan(Devices(64, 8, 80 * GB), work(1))
    assert (chosen.ranks, chosen.micro_batch_size, chosen.fewer_ranks_than_rows) == (2, 1, None)
    assert "no row for 6 more" in chosen.why
    assert "no row" not in plan(Devices(64, 8, 80 * GB), work(4)).why
    assert plan(Devices(64, 8, 80 * GB), work(1, with_prior=False)).ranks == 1
    assert plan(Devices(64, 7, 80 * GB), work(2), max_ranks=64).ranks == 4


def test_what_does_not_fit_is_refused_with_bytes_and_a_remedy() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan(Devices(8, 1, 6 * GB), work(4, sizes=SDXL, resolution=1024))
    said = str(refused.value)
    assert "3.39 billion trained parameters at 1024 px need at least" in said
    assert "on each of 1 GPUs, of whose 6.0 GB training may fill 4.8 GB (4760000000 bytes)" in said
    assert "use GPUs with more memory or" in said
    assert "a resolution below 1024 px" in said
    assert "train_text_encoder=False" in said
    with pytest.raises(DoesNotFit, match="billion"):
        plan(Devices(8, 1, GB // 2), work())


def test_options_change_what_fits() -> None:
    """One GPU of 16 GB: AdamW's states of SD 1.5 (17.7 GB) go to the host; in 8 bits (11.8 GB) they stay."""
    card = Devices(8, 1, 16 * GB)
    assert plan(card, work()).offload_optimizer
    assert not plan(card, work(optimizer="adamw_8bit")).offload_optimizer
    averaged = plan(card, work(optimizer="adamw_8bit", ema=True))
    assert averaged.offload_optimizer, "4 bytes more for every parameter: 15.7 GB"
    assert plan(card, work(train_text_encoder=False)).state_bytes < plan(card, work()).state_bytes
    assert (
        plan(Devices(8, 1, 80 * GB), work(precision="fp32")).activation_bytes
        > plan(Devices(8, 1, 80 * GB), work()).activation_bytes
    )


def test_one_tokens_embedding_has_no_states_but_all_activations() -> None:
    """Frozen parts are held in half precision by any engine; rows cost what training all costs at the most."""
    for ranks, devices in ((1, Devices(4, 1, 80 * GB)), (4, Devices(4, 4, 80 * GB))):
        whole, row = plan(devices, work(4, False)), plan(devices, work(4, False, inverts_token=True))
        assert (row.ranks, row.micro_batch_size) == (ranks, 4 // ranks)
        assert row.activation_bytes == whole.activation_bytes
        assert row.state_bytes < 100_000 < whole.state_bytes
        half = 2 * (SD15.unet_parameters + SD15.text_encoder_parameters[0])
        assert row.frozen_bytes == half + 4 * SD15.vae_parameters
    exact = plan(Devices(4, 1, 80 * GB), work(4, False, inverts_token=True, precision="fp32"))
    assert exact.frozen_bytes > row.frozen_bytes + half - 4


def test_a_plan_is_frozen_and_travels() -> None:
    chosen = plan(Devices(8, 2, 24 * GB), work())
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    with pytest.raises(FrozenInstanceError):
        chosen.ranks = 3
    assert "\n" not in chosen.why


BATCHES = st.integers(1, 24)
DEVICES = st.builds(
    Devices, cpus=st.just(64.0), gpus=st.integers(1, 16), gpu_memory_bytes=st.integers(6, 90).map(lambda gb: gb * GB)
)
WORKS = st.builds(
    Work,
    sizes=st.sampled_from([SD15, SDXL]),
    train_batch_size=BATCHES,
    with_prior=st.booleans(),
    resolution=st.sampled_from([256, 512, 768, 1024]),
    train_text_encoder=st.booleans(),
    precision=st.sampled_from(["auto", "bf16", "fp32"]),
    optimizer=st.sampled_from(["adamw", "adamw_8bit"]),
    ema=st.booleans(),
)


def chosen_or_none(devices: Devices, asked: Work, max_ranks: int = 0) -> Plan | None:
    try:
        return plan(devices, asked, max_ranks=max_ranks)
    except DoesNotFit:
        return None


@given(devices=DEVICES, asked=WORKS, max_ranks=st.integers(0, 8))
def test_every_plan_fits_and_has_all_rows(devices: Devices, asked: Work, max_ranks: int) -> None:
    chosen = chosen_or_none(devices, asked, max_ranks)
    if chosen is None:
        return
    assert chosen.ranks * chosen.micro_batch_size * chosen.gradient_accumulation_steps == asked.rows
    assert chosen.ranks <= min(devices.gpus, max_ranks or asked.rows)
    assert chosen.needed_bytes <= chosen.available_bytes < devices.gpu_memory_bytes
    assert (chosen.zero_stage == 0) == (chosen.ranks == 1 and not chosen.offload_optimizer)
    assert 25_000_000 <= chosen.bucket_elements <= 50_000_000
    assert chosen == plan(devices, asked, max_ranks=max_ranks), "the same numbers give the same plan"


@given(devices=DEVICES, asked=WORKS, more=st.integers(1, 60))
def test_more_memory_never_makes_a_slower_plan(devices: Devices, asked: Work, more: int) -> None:
    small = chosen_or_none(devices, asked)
    large = chosen_or_none(replace(devices, gpu_memory_bytes=devices.gpu_memory_bytes + more * GB), asked)
    if small is None:
        return
    assert large is not None
    assert large.ranks == small.ranks
    assert place(large) <= place(small)
    if place(large) == place(small):
        assert large.micro_batch_size >= small.micro_batch_size


def place(chosen: Plan) -> int:
    """Where a plan's way stands between the fastest and the slowest."""
    ways = WAYS if chosen.ranks > 1 else WAYS_OF_ONE_RANK
    return ways.index(Way(chosen.zero_stage, chosen.offload_optimizer, chosen.activation_checkpointing))


@given(devices=DEVICES, asked=WORKS)
def test_more_devices_never_refuse_what_fewer_can_do(devices: Devices, asked: Work) -> None:
    if chosen_or_none(devices, asked) is not None:
        assert chosen_or_none(replace(devices, gpus=devices.gpus * 2), asked) is not None


def test_lines_join_the_points_and_go_on() -> None:
    points = [(10, 100.0), (20, 300.0), (40, 400.0)]
    assert [line(points, at) for at in (10, 15, 20, 30, 40, 60)] == [100, 200, 300, 350, 400, 500]
    assert line(points, 1) == 0


@pytest.mark.parametrize("case", list(BY_HAND), ids=lambda case: "-".join(map(str, case)))
def test_the_planner_agrees_with_the_table_worked_out_by_hand(case: tuple[str, int, int]) -> None:
    assert chosen_by_the_planner(*case) == BY_HAND[case]


def test_the_table_by_hand_has_every_case_once() -> None:
    assert len(BY_HAND) == 32
    assert agreement() == 32


@pytest.mark.parametrize(
    ("sizes", "memory_gb", "gpus", "states", "activations", "needed"),
    [
        (SD15, 40, 1, 17.686, 8 * 1.336, 28.71),
        (SD15, 16, 1, 1.965, 8 * 1.009, 10.57),
        (SDXL, 80, 1, 60.933, 9.214, 70.48),
        (SDXL, 24, 8, 13.541, 7.341, 21.42),
        (SDXL, 16, 8, 8.463, 0.785, 11.88),
    ],
)
def test_bytes_are_those_worked_out_by_hand(
    sizes: ModelSizes, memory_gb: int, gpus: int, states: float, activations: float, needed: float
) -> None:
    """The figures of benchmarks/chooser.py, in GB."""
    asked = work(4, sizes=sizes, resolution=sizes.resolution_px)
    chosen = plan(Devices(gpus, gpus, memory_gb * GB), asked)
    found = (chosen.state_bytes, chosen.activation_bytes, chosen.needed_bytes)
    assert [count / GB for count in found] == pytest.approx([states, activations, needed], rel=0.001)
