"""One call at a time for each name, whoever asks; a failure is remembered for a while."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from typing import Generic, TypeVar

from booth_service.errors import ServiceError

_T = TypeVar("_T")


class Flights(Generic[_T]):
    """Thread-safe. Failures are ServiceErrors; anything else is not remembered."""

    def __init__(self, bad_memory_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bad_memory_s, self._clock = bad_memory_s, clock
        self._under_way: dict[str, Future[_T]] = {}
        self._bad: dict[str, tuple[float, ServiceError]] = {}
        self._lock = threading.Lock()

    def once(self, name: str, call: Callable[[], _T]) -> _T:
        """What the call returns or raises, made by this thread or, under the same name, by another one meanwhile.

        Raises the remembered error where one failed a short while ago.
        """
        with self._lock:
            self._raise_remembered(name)
            future = self._under_way.get(name)
            if is_mine := future is None:
                future = self._under_way[name] = Future()
        if is_mine:
            self._fly(name, future, call)
        return future.result()

    def failure(self, name: str) -> ServiceError | None:
        """The remembered error."""
        with self._lock:
            try:
                self._raise_remembered(name)
            except ServiceError as error:
                return error
            return None

    def _fly(self, name: str, future: "Future[_T]", call: Callable[[], _T]) -> None:
        try:
            result = call()
        except BaseException as error:
            with self._lock:
                if isinstance(error, ServiceError):
                    self._bad.pop(name, None)
                    self._bad[name] = (self._clock() + self._bad_memory_s, error)
                self._under_way.pop(name)
            future.set_exception(error)
        else:
            with self._lock:
                self._under_way.pop(name)
            future.set_result(result)

    def _raise_remembered(self, name: str) -> None:
        now = self._clock()
        while self._bad and next(iter(self._bad.values()))[0] <= now:  # the oldest comes first
            self._bad.pop(next(iter(self._bad)))
        if name in self._bad:
            raise copy(self._bad[name][1])
