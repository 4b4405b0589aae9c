"""The one HTTP seam: authentication, retries of what may be repeated, and problems as exceptions."""

from __future__ import annotations

import email.utils
import importlib.metadata
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TypeVar

import httpx2
import pydantic

from booth.config import Config
from booth.contract.base import Page, Record
from booth.contract.event_stream import MEDIA_TYPE, EventReader
from booth.contract.problems import Problem
from booth.errors import APIConnectionError, APIError, APITimeoutError, BoothError, TransferError, from_problem

MAX_RETRIES = 2
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 8.0
MAX_RETRY_AFTER_S = 120.0
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_CODES = {400: "bad_request", 401: "unauthenticated", 404: "not_found", 409: "conflict", 422: "invalid", 429: "busy"}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

Answer = TypeVar("Answer", bound=Record)
AnyPage = TypeVar("AnyPage", bound=Page)
Item = TypeVar("Item")


class Transport:
    """Calls to one service with one key. Thread-safe."""

    def __init__(
        self,
        config: Config,
        http: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = config.base_url
        self.sleep = sleep
        self._authorization = f"Bearer {config.api_key}"
        self._http = httpx2.Client(
            transport=http,
            timeout=_timeout(READ_TIMEOUT_S),
            headers={"User-Agent": f"booth-python/{importlib.metadata.version('booth')}"},
            mounts={f"all://{host}": None for host in _LOOPBACK},  # a proxy of the environment cannot reach these
        )

    def close(self) -> None:
        self._http.close()

    def get(
        self,
        path: str,
        answer: type[Answer],
        params: Mapping[str, str | int] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Answer:
        """The answer to a GET."""
        response = self._call("GET", path, params=params, timeout_s=timeout_s)
        return _parsed(response, response.content, answer)

    def newest(
        self,
        path: str,
        page_type: type[AnyPage],
        items: Callable[[AnyPage], list[Item]],
        limit: int | None,
        params: Mapping[str, str | int] | None = None,
    ) -> list[Item]:
        """What a listing holds, page by page, newest first; `limit` is the most."""
        found: list[Item] = []
        query = dict(params or {})
        while True:
            page = self.get(path, page_type, params=query)
            found.extend(items(page))
            if page.next_after is None or (limit is not None and len(found) >= limit):
                return found[:limit]
            query["after"] = page.next_after

    def post(
        self,
        path: str,
        answer: type[Answer],
        body: pydantic.BaseModel | None = None,
        idempotency_key: str | None = None,
        repeatable: bool = False,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Answer:
        """The answer to a POST. It is repeated after errors where it carries a key or the caller says it may be."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        content = None if body is None else body.model_dump_json().encode()
        response = self._call(
            "POST",
            path,
            content=content,
            headers=headers,
            repeatable=repeatable or idempotency_key is not None,
            timeout_s=timeout_s,
        )
        return _parsed(response, response.content, answer)

    @contextmanager
    def stream(
        self, path: str, event: type[Answer], body: pydantic.BaseModel, timeout_s: float = READ_TIMEOUT_S
    ) -> Iterator[Iterator[Answer]]:
        """The server-sent events that answer a POST which may be repeated, until they have begun.

        Leaving the block closes the connection, by which the service knows that nobody waits any more.
        """
        headers = {"Authorization": self._authorization, "Content-Type": "application/json", "Accept": MEDIA_TYPE}
        content = body.model_dump_json().encode()

        def send() -> httpx2.Response:
            request = self._http.build_request(
                "POST", self.base_url + path, content=content, headers=headers, timeout=_timeout(timeout_s)
            )
            return self._http.send(request, stream=True)

        response = self._repeated(send, repeatable=True, address=self.base_url)
        with closing(response):
            if response.status_code >= 300:
                response.read()
                raise _error(response)
            yield self._events(response, event)

    def _events(self, response: httpx2.Response, event: type[Answer]) -> Iterator[Answer]:
        reader = EventReader()
        try:
            for piece in response.iter_bytes():
                yield from (_parsed(response, line, event) for line in reader.feed(piece))
        except httpx2.TransportError as error:
            raise _no_answer(error, self.base_url) from error

    def delete(self, path: str) -> None:
        """The thing at `path` is gone."""
        self._call("DELETE", path)

    def put_link(self, url: str, data: bytes) -> None:
        """The bytes lie behind a presigned link. No key of ours is sent there."""

        def send() -> httpx2.Response:
            return self._http.put(url, content=data)

        response = self._repeated(send, repeatable=True, address=_host(url))
        if response.status_code >= 300:
            raise TransferError(f"{_host(url)} refused an upload with status {response.status_code}. Try again.")

    @contextmanager
    def get_link(self, url: str) -> Iterator[Iterator[bytes]]:
        """The bytes behind a presigned link, in pieces. Raises TransferError where they do not come."""
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    raise TransferError(f"{_host(url)} refused a download with status {response.status_code}.")
                yield response.iter_bytes(1 << 20)
        except httpx2.TransportError as error:
            raise TransferError(f"The download from {_host(url)} broke off ({error}). Try again.") from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> httpx2.Response:
        """The service's answer, status below 300; its problems are raised as exceptions."""
        sent = {"Authorization": self._authorization, **(headers or {})}
        if content is not None:
            sent["Content-Type"] = "application/json"

        def send() -> httpx2.Response:
            return self._http.request(
                method,
                self.base_url + path,
                params=dict(params) if params else None,
                content=content,
                headers=sent,
                timeout=_timeout(timeout_s),
            )

        response = self._repeated(send, repeatable, self.base_url)
        if response.status_code >= 300:
            raise _error(response)
        return response

    def _repeated(self, send: Callable[[], httpx2.Response], repeatable: bool, address: str) -> httpx2.Response:
        """The first good answer, or the last one. A call that never reached the server may always be repeated."""
        for attempt in range(MAX_RETRIES + 1):
            is_last = attempt == MAX_RETRIES
            pause_s = min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S) * random.uniform(0.75, 1.25)
            try:
                response = send()
            except httpx2.TransportError as error:
                never_arrived = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if is_last or not (repeatable or never_arrived):
                    raise _no_answer(error, address) from error
                self.sleep(pause_s)
                continue
            asked_s = _retry_after_s(response)
            too_long = asked_s is not None and asked_s > MAX_RETRY_AFTER_S
            is_hopeless = response.headers.get("x-should-retry") == "false"
            if is_last or too_long or is_hopeless or not repeatable or response.status_code not in _RETRIED:
                return response
            response.close()
            self.sleep(pause_s if asked_s is None else asked_s)
        raise AssertionError("the last attempt returns or raises")


def _timeout(read_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(read_s, connect=CONNECT_TIMEOUT_S)


def _parsed(response: httpx2.Response, content: bytes, answer: type[Answer]) -> Answer:
    try:
        return answer.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise APIError(
            Problem(
                code="internal",
                title=f"The answer of {response.url} is not what a Booth service says",
                detail=f"{error.error_count()} field(s) of {answer.__name__} do not fit",
                remedy="Check that the base URL names a Booth service of a fitting version.",
                status=response.status_code,
            )
        ) from error


def _error(response: httpx2.Response) -> BoothError:
    """The exception for an answer with an error status, whoever sent it."""
    request_id = response.headers.get("X-Request-Id", "")
    try:
        problem = Problem.model_validate_json(response.content)
    except pydantic.ValidationError:
        status = response.status_code
        code = _CODES.get(status, "unavailable" if status in (502, 503, 504) else "internal")
        title = f"{response.request.method} {response.url} was answered with status {status} {response.reason_phrase}"
        problem = Problem(code=code, title=title.rstrip(), status=status)
    return from_problem(problem if problem.request_id else problem.model_copy(update={"request_id": request_id}))


def _no_answer(error: httpx2.TransportError, address: str) -> APIConnectionError:
    is_late = isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout)
    kind = APITimeoutError if is_late else APIConnectionError
    return kind(
        Problem(
            code="unavailable",
            title=f"{address} did not answer{' in time' if is_late else ''}",
            detail=str(error) or type(error).__name__,
            remedy="Check that the server runs (a local one: `boothctl up`) and that BOOTH_BASE_URL is right.",
            status=0,
        )
    )


def _retry_after_s(response: httpx2.Response) -> float | None:
    """How long the server asks to wait: seconds, or an HTTP date."""
    asked = response.headers.get("Retry-After")
    if asked is None:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def _host(url: str) -> str:
    """A link without its signature, which must not reach a log."""
    return str(httpx2.URL(url).copy_with(query=None))
