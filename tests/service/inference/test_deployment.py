"""The ingress of the Serve application: who may make it forget a model."""

import asyncio

import pytest
import torch
from starlette.requests import Request

from booth.contract.serving import FORGET_PATH, SECRET_HEADER, ForgetRequest
from booth_service import settings as settings_module
from booth_service.inference.deployment import Painter
from booth_service.inference.weights_cache import Load
from booth_service.storage.s3 import ObjectStore


@pytest.fixture
def painter(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    monkeypatch.setenv("BOOTH_STACK_SECRET", "the secret")
    settings_module.settings.cache_clear()
    yield Painter()
    settings_module.settings.cache_clear()


def post(body: str, **headers: str) -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body.encode()}

    scope = {"type": "http", "method": "POST", "path": FORGET_PATH, "query_string": b"", "server": ("serve", 80)}
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({**scope, "scheme": "http", "headers": listed}, receive)


@pytest.mark.parametrize(("secret", "status", "left"), [("the secret", 204, 0), ("a guess", 403, 1), ("", 403, 1)])
def test_a_model_is_forgotten_for_the_stacks_secret_alone(
    painter: Painter, secret: str, status: int, left: int
) -> None:
    cache = painter.engine.models.cache
    cache.load([Load("0" * 64, 12, lambda: {"unet": {"w": torch.zeros(3)}})])
    body = ForgetRequest(manifest_sha256="0" * 64).model_dump_json()
    answer = asyncio.run(painter(post(body, **{SECRET_HEADER: secret})))
    assert (answer.status_code, len(cache)) == (status, left)
