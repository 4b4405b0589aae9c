"""Which rows are drawn next, on a simulated device: full batches, few switches, and nobody starves."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import SETTING, Arrival, Device, queue

from booth_service.inference.batching import BatchLimits, Choice, Past, choose

LIMITS = BatchLimits(size=8, pixels=8 * 512 * 512)
AGE_LIMIT_S = 10.0


def chosen(*queues, past: Past = Past(), now: float = 0.0, limits: BatchLimits = LIMITS) -> Choice:
    choice = choose(queues, past, limits, AGE_LIMIT_S, now)
    assert choice is not None
    return choice


def test_nobody_waits() -> None:
    assert choose([], Past(), LIMITS, AGE_LIMIT_S, 0.0) is None


@pytest.mark.parametrize(
    ("size", "pixels", "side_px", "room"),
    [
        (8, 8 * 512**2, 512, 8),
        (8, 8 * 512**2, 1024, 2),
        (8, 8 * 512**2, 256, 8),
        (8, 1024**2, 2048, 1),
        (6, 2**30, 8, 6),
    ],
)
def test_a_batch_is_limited_by_rows_and_by_pixels(size: int, pixels: int, side_px: int, room: int) -> None:
    setting = replace(SETTING, width=side_px, height=side_px)
    limits = BatchLimits(size, pixels)
    assert limits.room(setting) == room
    assert chosen(queue([0.0] * 20, setting=setting), limits=limits).rows == room


@pytest.mark.parametrize(
    ("size", "is_fixed", "padded"), [(8, False, [1, 2, 4, 4, 8]), (6, False, [1, 2, 4, 4, 6]), (8, True, [8] * 5)]
)
def test_batches_are_padded_to_few_sizes(size: int, is_fixed: bool, padded: list[int]) -> None:
    limits = BatchLimits(size, 2**40, is_fixed)
    assert [limits.padded(places, SETTING) for places in (1, 2, 3, 4, 5)] == padded


@pytest.mark.parametrize("is_fixed", [False, True])
def test_an_edit_takes_two_places_even_where_a_picture_fills_a_batch(is_fixed: bool) -> None:
    limits = BatchLimits(8, 512 * 512, is_fixed)
    assert chosen(queue([0.0, 0.0], places=[2, 2]), limits=limits).rows == 1
    assert limits.padded(2, SETTING) == 2


def test_rows_are_taken_in_order_and_never_more_than_fit() -> None:
    assert chosen(queue([0.0] * 6, places=[2, 1, 2, 2, 2, 1])).rows == 4  # 7 places; the next would be the ninth


def test_the_longest_queue_comes_first_and_the_live_model_counts_one_more() -> None:
    now, older = 1.0, queue([0.0, 0.0], "older")
    assert chosen(older, queue([0.5] * 3, "longer"), now=now).queue.model == "longer"
    assert chosen(older, queue([0.5] * 2, "live", live="live"), now=now).queue.model == "live"
    assert chosen(queue([0.0] * 4, "older"), queue([0.5] * 2, "live", live="live"), now=now).queue.model == "older"
    assert chosen(older, queue([0.5] * 2, "as long"), now=now).queue.model == "older"


def test_an_old_row_comes_before_all_else() -> None:
    flood, old = queue([9.0] * 50, "flood", live="flood"), queue([0.0], "old")
    assert chosen(flood, old, now=9.9).queue.model == "flood"
    assert chosen(flood, old, now=10.0).queue.model == "old"
    assert chosen(flood, old, now=9.5, past=Past(batch_s=1.0)).queue.model == "old"  # it would be late after the next


def test_a_flood_that_is_old_itself_does_not_hide_another_that_is() -> None:
    flood, old = queue([0.0] * 50, "flood", live="flood"), queue([5.0], "old")
    assert chosen(flood, old, now=15.0, past=Past(served={"flood": 14.0, "old": 1.0})).queue.model == "old"


def test_an_idle_device_waits_for_company_by_far_shorter_than_a_batch() -> None:
    assert chosen(queue([3.0]), now=3.0).at == 3.0
    assert chosen(queue([3.0]), now=3.0, past=Past(ended=1.0, places=1, batch_s=0.1)).at == pytest.approx(3.002)
    assert chosen(queue([3.0]), now=3.0, past=Past(ended=1.0, places=1, batch_s=9.0)).at == pytest.approx(3.015)
    assert chosen(queue([3.0] * 8), now=3.0, past=Past(ended=1.0, batch_s=9.0)).at == 3.0  # a full batch


def test_those_who_had_the_last_pictures_may_come_back_before_the_next_batch() -> None:
    past = Past(ended=3.0, places=8, batch_s=0.1)
    assert chosen(queue([3.0]), now=3.001, past=past).at == pytest.approx(3.015)
    assert chosen(queue([3.0]), now=3.02, past=past).at < 3.02
    assert chosen(queue([3.0]), now=3.001, past=replace(past, places=1)).at == pytest.approx(3.002)


@pytest.mark.parametrize("spacing_s", [0.0, 0.01, 0.05])
def test_interleaved_tenants_get_full_batches_and_few_switches(spacing_s: float) -> None:
    """64 requests over 8 tenants; Ray's own batching and multiplexing make batches of 1.0 and 62 switches of them."""
    device = Device(LIMITS, AGE_LIMIT_S)
    batches = device.run([Arrival(k * spacing_s, f"tenant-{k % 8}") for k in range(64)])
    assert 64 / len(batches) >= 5
    assert sum(batch.is_switch for batch in batches) <= 16


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0, 40), min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_flood_delays_nobody_by_more_than_the_age_limit_and_a_batch(others: list[list[float]]) -> None:
    """The flood is older than most rows of the others, and lasts as long as they ask."""
    device = Device(LIMITS, age_limit_s=8.0)
    flood = [Arrival(0.1 * k, "flood") for k in range(420)]
    device.run(flood + [Arrival(at, f"other-{name}") for name, times in enumerate(others) for at in times])
    assert max(device.waits("other")) <= device.age_limit_s + device.longest_batch_s
    assert max(device.waits("flood")) > 2 * device.age_limit_s  # or it would be no flood


ROWS = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 20),
        model=st.sampled_from("abcdef"),
        places=st.sampled_from([1, 1, 1, 2]),
        setting=st.sampled_from([SETTING, replace(SETTING, width=1024), replace(SETTING, num_inference_steps=5)]),
    ),
    max_size=60,
)


@given(ROWS, st.sampled_from([LIMITS, BatchLimits(1, 2**40), BatchLimits(8, 512 * 512), BatchLimits(6, 2**40, True)]))
def test_everything_is_drawn_once_in_batches_that_fit(rows: list[Arrival], limits: BatchLimits) -> None:
    batches = Device(limits).run(rows)
    assert Counter(id(row) for batch in batches for row in batch.rows) == Counter(map(id, rows))
    for batch in batches:
        assert len({(row.model, row.setting) for row in batch.rows}) == 1
        setting = batch.rows[0].setting
        assert batch.places <= limits.room(setting) or len(batch.rows) == 1
        assert batch.places <= limits.padded(batch.places, setting)
        assert [row.at for row in batch.rows] == sorted(row.at for row in batch.rows)
