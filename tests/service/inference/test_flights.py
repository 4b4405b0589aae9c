"""One call at a time for each name, and failures that are remembered."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from booth_service.errors import ObjectMissing
from booth_service.inference.flights import Flights


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fails() -> int:
    raise ObjectMissing("no such model")


def test_all_who_ask_meanwhile_get_what_one_call_returned() -> None:
    flights, calls, may_end = Flights[int](30), [], threading.Event()

    def call() -> int:
        calls.append(1)
        assert may_end.wait(5)
        return len(calls)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(flights.once, "a", call) for _ in range(4)]
        while not all(each.running() for each in asked):
            time.sleep(0.01)
        time.sleep(0.05)
        may_end.set()
        assert [each.result(5) for each in asked] == [1] * 4
    may_end.set()
    assert flights.once("a", call) == 2  # nothing is kept


def test_a_failure_is_remembered_for_a_while_and_by_its_name_alone() -> None:
    clock = Clock()
    flights = Flights[int](30, clock)
    with pytest.raises(ObjectMissing):
        flights.once("a", fails)
    for now, is_remembered in ((29.9, True), (30.0, False)):
        clock.now = now
        assert (flights.failure("a") is not None) == is_remembered
    clock.now = 0.0
    assert flights.once("b", lambda: 1) == 1
    assert flights.failure("b") is None


def test_a_remembered_failure_costs_no_call() -> None:
    clock, calls = Clock(), []
    flights = Flights[int](30, clock)
    with pytest.raises(ObjectMissing):
        flights.once("a", fails)
    with pytest.raises(ObjectMissing, match="no such model"):
        flights.once("a", lambda: calls.append(1) or 1)
    assert calls == []
    clock.now = 31.0
    assert flights.once("a", lambda: calls.append(1) or 1) == 1


def test_what_is_no_failure_of_the_service_is_not_remembered() -> None:
    flights = Flights[int](30)
    with pytest.raises(ZeroDivisionError):
        flights.once("a", lambda: 1 // 0)
    assert flights.once("a", lambda: 2) == 2
