"""Bytes between memory and the object store over plain HTTP: no copy in between, no file, any number of threads.

The store's SDK spends 2 s of CPU for a gigabyte that it sends, and this 0.25 s (AMD EPYC): a signed link takes the
body as it lies in memory. Every try gets a link of its own, so that none expires however long a transfer takes.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import urllib3
from urllib3.exceptions import HTTPError

from booth_service.errors import ObjectMissing, StorageError

_T = TypeVar("_T")

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 60.0
RETRY_FOR_S = 150.0  # no try begins later: ranks wait for each other in collectives that give up after 300 s
LONGEST_PAUSE_S = 8.0
MAX_CONNECTIONS = 64
PIECE_BYTES = 2**20
_AGAIN_STATUS = {408, 429, 500, 502, 503, 504}
_AGAIN_CODES = {"RequestTimeout", "SlowDown", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


@dataclass(frozen=True)
class Link:
    """A signed request: exactly these headers go with it, beside the length."""

    url: str
    headers: Mapping[str, str]


class Transfer:
    """Connections to one object store, shared by all threads. `proxy` and `ca_bundle` are None where there is none."""

    def __init__(self, proxy: str | None = None, ca_bundle: str | None = None) -> None:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        common = {"maxsize": MAX_CONNECTIONS, "timeout": timeout, "ca_certs": ca_bundle}
        self._pool = urllib3.ProxyManager(proxy, **common) if proxy else urllib3.PoolManager(**common)  # type: ignore[arg-type]

    def put(self, what: str, link: Callable[[], Link], body: memoryview) -> str:
        """Store a body of bytes; returns its ETag. Raises StorageError, naming `what`, where retries do not help."""

        def once() -> str:
            there = link()
            response = self._send("PUT", there.url, body, dict(there.headers))
            _check(response, response.data)
            return response.headers["ETag"]

        return _retried(what, once)

    def get_into(self, what: str, link: Callable[[], Link], start: int, view: memoryview) -> None:
        """Fill `view` with an object's bytes from `start` on; what has come is not fetched again after a fault.

        Raises StorageError, naming `what`, also where the object ends before; ObjectMissing where there is none.
        """
        have = 0

        def once() -> None:
            nonlocal have
            there = link()
            asked = f"bytes={start + have}-{start + len(view) - 1}"
            response = self._send("GET", there.url, None, {**there.headers, "Range": asked}, preload_content=False)
            try:
                if response.status != 206:
                    _check(response, response.read())
                    raise _Refused(f"answered {response.status} to a request for {asked}")
                while have < len(view) and (count := response.readinto(view[have : have + PIECE_BYTES])):
                    have += count
            finally:
                response.close() if have < len(view) else response.release_conn()
            if have < len(view):
                raise _Refused(f"ends after {start + have} of {start + len(view)} bytes")

        if len(view):
            _retried(what, once)

    def _send(
        self, method: str, url: str, body: memoryview | None, headers: dict[str, str], preload_content: bool = True
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.urlopen(
            method, url, body=body, headers=headers, retries=False, redirect=False, preload_content=preload_content
        )


class _Refused(Exception):
    """The store's answer is no; asking again gives the same."""


class _Missing(_Refused):
    pass


class _Again(Exception):
    """The store cannot now."""


def _check(response: urllib3.BaseHTTPResponse, body: bytes) -> None:
    """Raises where the answer is not a success: _Again where the same request may succeed a little later."""
    if response.status < 300:
        return
    found = re.search(rb"<Code>(\w+)</Code>", body)
    code = found[1].decode() if found else ""
    said = f"answered {response.status} {code}".rstrip()
    if response.status in _AGAIN_STATUS or code in _AGAIN_CODES:
        raise _Again(said)
    raise (_Missing if response.status == 404 else _Refused)(said)


def _retried(what: str, once: Callable[[], _T]) -> _T:
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return once()
        except _Refused as refused:
            raise (ObjectMissing if isinstance(refused, _Missing) else StorageError)(f"{what}: {refused}") from None
        except (_Again, HTTPError, OSError) as fault:
            spent = time.monotonic() - began
            pause = min(LONGEST_PAUSE_S, 0.1 * 2**tries) * random.uniform(0.5, 1)
            if spent + pause > RETRY_FOR_S:
                raise StorageError(f"{what}: {fault} ({tries} tries in {spent:.0f} s)") from fault
            time.sleep(pause)
