"""Calls for pictures on their way to Serve: how many are under way, and which are tried again."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from booth.contract.serving import FORGET_PATH, STREAM_PATH
from booth_service.control.serve_calls import ServeCalls

URL = "http://serve.test"


class Body(httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"


class Serve(httpx2.AsyncBaseTransport):
    """Answers these in turn; None goes away without an answer."""

    def __init__(self, *answers: httpx2.Response | None) -> None:
        self.answers, self.bodies, self.seen = list(answers), [], []
        self.serve_calls = ServeCalls(self)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(await request.aread())
        self.seen.append(self.serve_calls.under_way)
        answer = self.answers.pop(0)
        if answer is None:
            raise httpx2.ReadError("gone")
        return answer


def post(serve: Serve, path: str = "/") -> httpx2.Response:
    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=serve.serve_calls) as client:
            return await client.post(URL + path, content=b"draw")

    return asyncio.run(ask())


def dead() -> httpx2.Response:
    return httpx2.Response(500, headers={"Content-Type": "text/plain"}, stream=Body())


def refusal() -> httpx2.Response:
    return httpx2.Response(500, headers={"Content-Type": "application/json"}, stream=Body())


def test_a_call_counts_until_its_answer_is_read() -> None:
    serve = Serve(httpx2.Response(200, stream=Body()))

    async def stream() -> list[tuple[int, str]]:
        async with httpx2.AsyncClient(transport=serve.serve_calls) as client:
            async with client.stream("POST", URL + STREAM_PATH) as answer:
                read = [(serve.serve_calls.under_way, chunk) async for chunk in answer.aiter_text()]
            return [*read, (serve.serve_calls.under_way, "closed")]

    assert asyncio.run(stream()) == [(1, "one "), (1, "two"), (0, "closed")]


@pytest.mark.parametrize("path", ["/", STREAM_PATH])
def test_a_call_whose_replica_died_is_made_once_more(path: str) -> None:
    serve = Serve(dead(), httpx2.Response(200, stream=Body()))
    assert post(serve, path).text == "one two"
    assert (serve.bodies, serve.seen, serve.serve_calls.under_way) == ([b"draw"] * 2, [1, 1], 0)


def test_twice_is_enough() -> None:
    serve = Serve(dead(), dead())
    assert post(serve).status_code == 500
    assert (len(serve.bodies), serve.serve_calls.under_way) == (2, 0)


def test_what_the_application_refuses_is_its_answer() -> None:
    serve = Serve(refusal())
    assert post(serve).status_code == 500
    assert serve.serve_calls.under_way == 0


def test_a_call_that_fails_is_over() -> None:
    serve = Serve(None)
    with pytest.raises(httpx2.ReadError):
        post(serve)
    assert serve.serve_calls.under_way == 0


def test_forgetting_is_no_picture() -> None:
    serve = Serve(httpx2.Response(204))
    assert post(serve, FORGET_PATH).status_code == 204
    assert serve.seen == [0]
