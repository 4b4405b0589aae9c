"""The Serve application: it takes nothing without the stack's secret, and draws with the engine.

One deployment, with Serve's consistent-hash router in front of it: the proxy reads ROUTING_HEADER and sends all calls
for one model to one replica, to the next of the ring where that one is full. An ingress before it would cost a hop.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import torch
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from booth.contract.serving import (
    FORGET_PATH,
    SECRET_HEADER,
    STREAM_PATH,
    WARM_PATH,
    DrawAnswer,
    DrawEvent,
    DrawRequest,
    ForgetRequest,
    ModelRef,
)
from booth_service.errors import CannotDraw, DrawTimeout
from booth_service.inference.deletions import Deletions
from booth_service.inference.engine import Engine
from booth_service.inference.refusals import RETRY_AFTER_S, refusal_of
from booth_service.inference.ticket import Ticket
from booth_service.settings import Settings, settings
from booth_service.storage.s3 import ObjectStore

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
BATCHES_AT_A_REPLICA = 8  # calls of one picture that a replica takes before the next one of the ring gets some
_GRACE_S = 5.0  # the engine ends a call in time by itself; this is for one that does not

logger = logging.getLogger("ray.serve")


def build_engine(config: Settings) -> Engine:
    """The engine of this replica's device."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # training ranks share these cores
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Engine.from_settings(config, store, device)


class Painter:
    """Draws pictures with any model of the stack."""

    def __init__(self) -> None:
        config = settings()
        self.secret = config.stack_secret.get_secret_value()
        if not self.secret:
            raise RuntimeError("BOOTH_STACK_SECRET is empty; without it anyone who reaches this port could draw")
        self.stuck_limit_s = config.serving_stuck_limit_s
        self.engine = build_engine(config)
        self.deletions = Deletions(self.engine, config.api_url, self.secret)
        self.deletions.start()
        self._answers: dict[str, Callable[[bytes], Awaitable[Response]]] = {
            "/": self._draw,
            STREAM_PATH: self._stream,
            WARM_PATH: self._warm,
            FORGET_PATH: self._forget,
        }

    async def __call__(self, request: Request) -> Response:
        """What contract/serving.py says; nothing but /healthz without the secret."""
        if request.url.path == "/healthz":
            return JSONResponse({"status": "ok"})
        if not hmac.compare_digest(request.headers.get(SECRET_HEADER, "").encode(), self.secret.encode()):
            return JSONResponse({"detail": "this endpoint answers the control plane alone"}, status_code=403)
        answer = self._answers.get(request.url.path)
        if answer is None or request.method != "POST":
            return JSONResponse({"detail": f"there is no {request.method} {request.url.path}"}, status_code=404)
        try:
            return await answer(await request.body())
        except ValidationError as error:
            return refused(CannotDraw(f"the request cannot be read: {error.error_count()} problem(s)"))
        except Exception as error:
            return refused(error)

    def check_health(self) -> None:
        """Raises where the device is stuck; Serve then replaces the replica."""
        stuck_s = self.engine.stuck_s()
        if stuck_s > self.stuck_limit_s:
            raise RuntimeError(f"the device has not finished a denoising step for {stuck_s:.0f} s")

    async def draw(self, wanted: DrawRequest) -> DrawAnswer:
        """The pictures. A caller who goes away stops them. Raises ServiceError."""
        ticket = self.engine.submit(wanted)
        try:
            async with asyncio.timeout(wanted.timeout_s + _GRACE_S):
                return await asyncio.wrap_future(ticket.future)
        except TimeoutError as error:
            raise DrawTimeout(f"no answer within {wanted.timeout_s:g} s") from error
        finally:
            ticket.cancel()  # nothing to a ticket whose pictures are there

    async def _draw(self, body: bytes) -> Response:
        answer = await self.draw(DrawRequest.model_validate_json(body))
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _stream(self, body: bytes) -> Response:
        wanted = DrawRequest.model_validate_json(body)
        events: asyncio.Queue[DrawEvent | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: DrawEvent | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        ticket = self.engine.submit(wanted, tell)
        ticket.future.add_done_callback(lambda _: tell(None))  # after all events: callbacks of a loop keep their order
        return StreamingResponse(_told(ticket, events, wanted.timeout_s + _GRACE_S), media_type="text/event-stream")

    async def _warm(self, body: bytes) -> Response:
        await asyncio.to_thread(self.engine.warm, ModelRef.model_validate_json(body))
        return Response(status_code=204)

    async def _forget(self, body: bytes) -> Response:
        forgotten = ForgetRequest.model_validate_json(body)
        await asyncio.to_thread(self.engine.forget, forgotten.manifest_sha256)
        return Response(status_code=204)


async def _told(ticket: Ticket, events: "asyncio.Queue[DrawEvent | None]", within_s: float) -> AsyncIterator[str]:
    """The ticket's events as they come, "done" or "refused" last. A reader who goes away cancels the ticket."""
    deadline = time.monotonic() + within_s
    try:
        while (event := await asyncio.wait_for(events.get(), deadline - time.monotonic())) is not None:
            yield f"data: {event.model_dump_json()}\n\n"
        ticket.future.result()
        last = DrawEvent(kind="done")
    except TimeoutError:
        _, refusal = refusal_of(DrawTimeout("no answer within the call's time"))
        last = DrawEvent(kind="refused", refusal=refusal)
    except Exception as error:
        logger.warning("refused: %s", error)
        last = DrawEvent(kind="refused", refusal=refusal_of(error)[1])
    finally:
        ticket.cancel()
    yield f"data: {last.model_dump_json()}\n\n"


def refused(error: Exception) -> Response:
    """The answer where nothing is drawn."""
    status, refusal = refusal_of(error)
    if status in (500, 503):
        logger.error("%s: %s", type(error).__name__, error, exc_info=error if status == 500 else None)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else {}
    return Response(refusal.model_dump_json(), status, headers, media_type="application/json")


def replica_devices(config: Settings) -> dict[str, Any]:
    """A replica's share of the devices. No CPU ever, so that an idle replica starves no gang."""
    if config.serving_yields and config.serving_yields != "GPU":
        return {"num_cpus": 0, "resources": {config.serving_yields: 1}}
    gpus = 1.0 if config.serving_yields else config.serving_gpus / config.serving_replicas
    return {"num_cpus": 0, "num_gpus": gpus if gpus < 1 else int(gpus)} if gpus else {"num_cpus": 0}


def serve_options(config: Settings) -> dict[str, Any]:
    """How Serve runs replicas: how many, how many calls each, and what becomes of the rest."""
    ongoing = max(1, min(BATCHES_AT_A_REPLICA * config.serving_batch_size, config.serving_queue_pictures // 2))
    return {
        "max_ongoing_requests": ongoing,
        "max_queued_requests": max(1, config.serving_queue_pictures - ongoing),
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=1,
            max_replicas=config.serving_replicas,
            target_ongoing_requests=max(1, ongoing // 2),
            upscale_delay_s=10,
            downscale_delay_s=300,
        ),
        "graceful_shutdown_timeout_s": config.serving_drain_s,
        "ray_actor_options": replica_devices(config),
    }


application = serve.deployment(**serve_options(settings()))(Painter).bind()
