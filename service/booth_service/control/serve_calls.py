"""Calls to Serve on their way out: counted, for inference may leave only when they are done, and tried once more where
the replica died under them."""

import logging
from collections.abc import AsyncIterator

import httpx2

from booth.contract.serving import FORGET_PATH, WARM_PATH

logger = logging.getLogger(__name__)


class ServeCalls(httpx2.AsyncBaseTransport):
    """Passes calls on. `under_way` are those for pictures whose answers are not complete."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self.transport, self.under_way = transport, 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer. A picture is a function of its request, so that drawing it twice harms nobody."""
        if request.url.path.endswith((FORGET_PATH, WARM_PATH)):
            return await self.transport.handle_async_request(request)
        self.under_way += 1
        try:
            answer = await self.transport.handle_async_request(request)
            if lost_its_replica(answer):
                logger.warning("a replica died while it drew; the call is tried once more")
                await answer.aclose()
                answer = await self.transport.handle_async_request(request)
        except BaseException:
            self.under_way -= 1
            raise
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.stream = _Counted(answer.stream, self)
        return answer

    async def aclose(self) -> None:
        await self.transport.aclose()


def lost_its_replica(answer: httpx2.Response) -> bool:
    """Serve's proxy answers a bare 500 then; the application's own errors are JSON."""
    return answer.status_code == 500 and not answer.headers.get("Content-Type", "").startswith("application/json")


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, calls: ServeCalls) -> None:
        self._stream, self._calls = stream, calls
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._calls.under_way -= 1
        await self._stream.aclose()
