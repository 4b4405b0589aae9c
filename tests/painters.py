"""Serve applications for tests and benchmarks: our deployment round an engine that does nothing, and one that holds."""

import asyncio
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from booth.contract.serving import DrawAnswer, Drawn, DrawRequest
from booth_service.inference.deployment import Painter, serve_options
from booth_service.inference.ticket import Ticket
from booth_service.settings import Settings


class NoPictures:
    """An engine that answers at once, from a thread of its own as the real one does."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)

    def submit(self, request: DrawRequest, on_event: Any = None) -> Ticket:
        ticket = Ticket()
        answer = DrawAnswer(pictures=[Drawn(png_base64="") for _ in request.draws])
        self.thread.submit(ticket.future.set_result, answer)
        return ticket

    def stuck_s(self) -> float:
        return 0.0


class IdlePainter(Painter):
    """Our deployment without a store, a device and a control plane."""

    def __init__(self) -> None:
        self.engine, self.stuck_limit_s = NoPictures(), 60.0


class Echo:
    """The least that Serve can do."""

    async def __call__(self, body: Any) -> Any:
        return body


class Holding:
    """Says which process it is, at once or when the file is there that the call names."""

    async def __call__(self, request: Request) -> PlainTextResponse:
        until = request.query_params.get("until")
        while until and not Path(until).exists():
            await asyncio.sleep(0.02)
        return PlainTextResponse(str(os.getpid()))


@contextmanager
def routed_replicas(config: Settings, replicas: int) -> Iterator[str]:
    """The URL of a Serve application with our deployment's options and so many replicas; Ray must be there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {name: value for name, value in serve_options(config).items() if name != "autoscaling_config"}
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    try:
        serve.run(serve.deployment(**options, num_replicas=replicas)(Holding).bind(), name="holding")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
