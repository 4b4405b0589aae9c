"""A TCP proxy before an S3 server that answers 503 SlowDown, and breaks connections in the middle, now and then.

It passes the Host header on as it came, so that signatures stay valid. Every request gets a connection of its own to
the server, and the client's is closed after the answer.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

HEAD_BYTES, PIECE_BYTES = 2**16, 2**16
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
ANSWER = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


class FaultProxy:
    """`slow_down` and `reset` are shares of all requests. `counts`: what was done to how many of them."""

    def __init__(self, server_url: str, slow_down: float, reset: float, seed: int = 0) -> None:
        address = urlsplit(server_url)
        self._server = (address.hostname or "", address.port or 80)
        self._slow_down, self._reset = slow_down, reset
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.endpoint_url = ""

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serves on a free port of loopback until `stop`."""
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=HEAD_BYTES)
        self.endpoint_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        async with server:
            await stop.wait()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            await self._request(head, reader, writer)
        writer.close()

    async def _request(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = re.search(rb"(?im)^content-length: *(\d+)", head)
        length = int(found[1]) if found else 0
        fault = self._fault()
        self.counts[fault] += 1
        if fault == "slow down":
            if b"100-continue" not in head:
                await _discard(reader, self._random.randint(0, length))  # an early answer, or one after all has come
            writer.write(ANSWER % len(SLOW_DOWN) + SLOW_DOWN)
            await writer.drain()
            return
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        head = re.sub(rb"(?im)^connection:.*\r\n", b"", head)
        server_writer.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        try:
            if fault == "reset in request":
                await _pump(reader, server_writer, self._random.randint(0, length))
                _break(writer)
            elif fault == "reset before answer":
                sending = asyncio.create_task(_pump(reader, server_writer, length))
                await self._answer(server_reader, writer, keep=True)
                sending.cancel()
                _break(writer)
            else:
                most = self._random.randint(0, PIECE_BYTES) if fault == "reset in answer" else None
                sending = asyncio.create_task(_pump(reader, server_writer, length))
                await self._answer(server_reader, writer, most=most)
                sending.cancel()
                if fault:
                    _break(writer)
        finally:
            server_writer.transport.abort()

    async def _answer(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None, keep: bool = False
    ) -> None:
        """Pass on what the server says; at most `most` bytes of it. `keep`: nothing but the leave to send a body."""
        while piece := await server.read(PIECE_BYTES if most is None else min(most, PIECE_BYTES)):
            if keep:
                piece = piece if piece.startswith(b"HTTP/1.1 100") and piece.count(b"HTTP/1.1") == 1 else b""
            most = None if most is None else most - len(piece)
            writer.write(piece)
            await writer.drain()

    def _fault(self) -> str:
        drawn = self._random.random()
        if drawn < self._slow_down:
            return "slow down"
        if drawn < self._slow_down + self._reset:
            return self._random.choice(["reset in request", "reset before answer", "reset in answer"])
        return ""


@contextmanager
def fault_proxy(server_url: str, slow_down: float = 0.2, reset: float = 0.1, seed: int = 0) -> Iterator[FaultProxy]:
    """The proxy runs in a thread of its own until the block ends."""
    proxy, started = FaultProxy(server_url, slow_down, reset, seed), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run(main: Coroutine[Any, Any, None]) -> None:
        loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:  # gathering nothing looks for a running loop, which this thread has none of
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    thread = threading.Thread(target=run, args=(proxy.serve(started, stop),), name="fault proxy", daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length and (piece := await reader.read(min(length, PIECE_BYTES))):
        writer.write(piece)
        await writer.drain()
        length -= len(piece)


async def _discard(reader: asyncio.StreamReader, length: int) -> None:
    while length and (piece := await reader.read(min(length, PIECE_BYTES))):
        length -= len(piece)


def _break(writer: asyncio.StreamWriter) -> None:
    """The client sees a reset, not an end."""
    held: socket.socket = writer.get_extra_info("socket")
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
