"""Calls to Serve that are under way, counted on their way out: what inference has to finish before it may leave."""

from collections.abc import AsyncIterator

import httpx2

from booth.contract.serving import STREAM_PATH


class Drawing(httpx2.AsyncBaseTransport):
    """Passes calls on. `calls` are those for pictures whose answers are not complete."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self.transport, self.calls = transport, 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.rstrip("/") not in ("", STREAM_PATH):
            return await self.transport.handle_async_request(request)
        self.calls += 1
        try:
            answer = await self.transport.handle_async_request(request)
        except BaseException:
            self.calls -= 1
            raise
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.stream = _Counted(answer.stream, self)
        return answer

    async def aclose(self) -> None:
        await self.transport.aclose()


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, drawing: Drawing) -> None:
        self._stream, self._drawing = stream, drawing
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._drawing.calls -= 1
        await self._stream.aclose()
