"""The Serve application: one ingress that takes nothing without the stack's secret, and the engine behind it."""

import asyncio
import hmac
import logging

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from booth.contract.serving import FORGET_PATH, SECRET_HEADER, DrawRequest, ForgetRequest
from booth_service.errors import ServiceError
from booth_service.inference.engine import Engine
from booth_service.settings import settings
from booth_service.storage.s3 import ObjectStore

MAX_ONGOING_REQUESTS = 16
MAX_QUEUED_REQUESTS = 64

logger = logging.getLogger("ray.serve")


class Painter:
    """Draws pictures with any model of the stack."""

    def __init__(self) -> None:
        config = settings()
        self.secret = config.stack_secret.get_secret_value()
        if not self.secret:
            raise RuntimeError("BOOTH_STACK_SECRET is empty; without it anyone who reaches this port could draw")
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # training ranks share these cores
        store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.engine = Engine.from_settings(config, store, device)

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
        try:
            answer = await asyncio.wrap_future(self.engine.submit(wanted).future)
        except ServiceError as error:
            logger.error("model %s cannot be drawn with: %s", wanted.model.model_id, error)
            return JSONResponse({"detail": str(error), "reason": error.reason}, status_code=503)
        return Response(answer.model_dump_json(), media_type="application/json")


def _replica_devices() -> dict[str, float]:
    """On GPUs what the operator set aside for serving; on CPUs nothing, so that an idle replica starves no gang."""
    gpus = settings().serving_gpus
    return {"num_cpus": 0, "num_gpus": gpus} if gpus else {"num_cpus": 0}


application = serve.deployment(
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_QUEUED_REQUESTS,
    ray_actor_options=_replica_devices(),
)(Painter).bind()
