"""The Serve application: one ingress that takes nothing without the stack's secret, and the engine behind it."""

import asyncio
import hmac
import logging

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from booth.contract.serving import FORGET_PATH, SECRET_HEADER, DrawAnswer, DrawRequest, ForgetRequest
from booth_service.errors import ServiceError
from booth_service.inference.engine import Engine
from booth_service.settings import settings
from booth_service.storage.s3 import ObjectStore

BATCH_SIZE = 4
BATCH_WAIT_S = 0.02
MAX_ONGOING_REQUESTS = 16
MAX_QUEUED_REQUESTS = 64

logger = logging.getLogger("ray.serve")


class Painter:
    """Draws pictures with any model of the stack; requests that arrive together share batches where they can."""

    def __init__(self) -> None:
        config = settings()
        self.secret = config.stack_secret.get_secret_value()
        if not self.secret:
            raise RuntimeError("BOOTH_STACK_SECRET is empty; without it anyone who reaches this port could draw")
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # training ranks share these cores
        store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.engine = Engine(store, device, config.model_cache_bytes, BATCH_SIZE, config.scratch_dir)

    async def __call__(self, request: Request) -> Response:
        """POST / takes a DrawRequest and answers a DrawAnswer, POST /forget a ForgetRequest; GET /healthz says that the
        replica is there."""
        if request.url.path == "/healthz":
            return JSONResponse({"status": "ok"})
        if not hmac.compare_digest(request.headers.get(SECRET_HEADER, ""), self.secret):
            return JSONResponse({"detail": "this endpoint answers the control plane alone"}, status_code=403)
        if request.url.path == FORGET_PATH:
            forgotten = ForgetRequest.model_validate_json(await request.body())
            await asyncio.to_thread(self.engine.forget, forgotten.manifest_sha256)
            return Response(status_code=204)
        wanted = DrawRequest.model_validate_json(await request.body())
        answer = await self.draw_together(wanted)
        if isinstance(answer, ServiceError):
            logger.error("model %s cannot be drawn with: %s", wanted.model.model_id, answer)
            return JSONResponse({"detail": str(answer), "reason": answer.reason}, status_code=503)
        return Response(answer.model_dump_json(), media_type="application/json")

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_ONGOING_REQUESTS, batch_wait_timeout_s=BATCH_WAIT_S
    )
    async def draw_together(self, requests: list[DrawRequest]) -> list[DrawAnswer | ServiceError]:
        """One answer for each request. Those for one model and setting are drawn as one; a bad model fails alone."""
        answers: dict[int, DrawAnswer | ServiceError] = {}
        for places in same_setting(requests):
            together = merged([requests[place] for place in places])
            try:
                pictures = iter(await asyncio.to_thread(self.engine.draw, together))
            except ServiceError as error:
                answers.update(dict.fromkeys(places, error))
                continue
            for place in places:
                own = [next(pictures) for _ in requests[place].draws]
                answers[place] = DrawAnswer(pngs_base64=own)
        return [answers[place] for place in range(len(requests))]


def same_setting(requests: list[DrawRequest]) -> list[list[int]]:
    """Places of the requests that can be drawn as one, in order of arrival."""
    groups: dict[tuple[str, float, int, int], list[int]] = {}
    for place, request in enumerate(requests):
        setting = (request.model.model_id, request.guidance_scale, request.num_inference_steps, request.resolution)
        groups.setdefault(setting, []).append(place)
    return list(groups.values())


def merged(requests: list[DrawRequest]) -> DrawRequest:
    """One request with the draws of all, one after the other."""
    return requests[0].model_copy(update={"draws": [draw for request in requests for draw in request.draws]})


def _replica_devices() -> dict[str, float]:
    """On GPUs what the operator set aside for serving; on CPUs nothing, so that an idle replica starves no gang."""
    gpus = settings().serving_gpus
    return {"num_cpus": 0, "num_gpus": gpus} if gpus else {"num_cpus": 0}


application = serve.deployment(
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_QUEUED_REQUESTS,
    ray_actor_options=_replica_devices(),
)(Painter).bind()
