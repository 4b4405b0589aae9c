"""OpenAI's own client against the control plane, over HTTP. Serve is a real HTTP server too."""

import base64
from contextlib import contextmanager
from dataclasses import replace

import httpx2
import openai
import pytest
from control_plane import http, started
from loopback import on_loopback
from painter import Painter, png

from booth.contract.serving import DrawRefusal


@contextmanager
def openai_client(plane, user, painter: Painter, key: str | None = None):
    """OpenAI's client of this user, of a control plane in front of this Serve."""
    with on_loopback(painter.app) as serve_url:
        settings = plane.settings.model_copy(update={"serve_url": serve_url})
        real = replace(plane, settings=settings, serve=httpx2.AsyncClient(trust_env=False))
        own = user.http.headers["Authorization"].removeprefix("Bearer ")
        with on_loopback(http(real).app) as url, httpx2.Client(trust_env=False) as plain:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key=key or own, max_retries=0, http_client=plain)


def test_a_models_pictures_by_openais_client(plane, user, stranger):
    driver = started(plane, user)
    driver.publish()
    model_id, painter = driver.job["model_id"], Painter()
    with openai_client(plane, user, painter) as client:
        more = {"seed": 5, "negative_prompt": "n", "guidance_scale": 2, "num_inference_steps": 7, "scheduler": "ddim"}
        answer = client.images.generate(
            model=model_id,
            prompt="a sks dog",
            n=2,
            size="96x32",
            response_format="b64_json",
            quality="high",
            style="vivid",
            user="someone",
            background="opaque",
            output_format="png",
            extra_body=more,
        )
    assert [base64.b64decode(image.b64_json) for image in answer.data] == [png(5), png(6)]
    assert [image.seed for image in answer.data] == [5, 6]
    assert (answer.size, answer.output_format, answer.created) == ("96x32", "png", int(plane.now().timestamp()))
    [asked] = painter.asked
    assert (asked.model.model_id, asked.width, asked.height, asked.scheduler) == (model_id, 96, 32, "ddim")
    assert (asked.guidance_scale, asked.num_inference_steps) == (2, 7)
    assert [(draw.prompt, draw.negative_prompt) for draw in asked.draws] == [("a sks dog", "n")] * 2
    with openai_client(plane, stranger, painter) as client, pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model=model_id, prompt="a sks dog")
    assert (caught.value.param, caught.value.type) == ("model", "invalid_request_error")
    assert len(painter.asked) == 1


def test_links_are_the_default_and_auto_is_the_models_own_size(plane, user):
    painter = Painter()
    with openai_client(plane, user, painter) as client:
        answer = client.images.generate(model="tiny", prompt="a dog", size="auto", extra_body={"seed": 8})
        [image] = answer.data
        assert httpx2.get(image.url, trust_env=False).content == png(8)
    assert (image.b64_json, answer.size) == (None, "64x64")
    assert painter.asked[0].model.manifest_key is None


@pytest.mark.parametrize(
    ("arguments", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "Give at least 1"),
        ({"prompt": "x" * 1001}, "prompt", "Shorten it to 1000"),
        ({"n": 0}, "n", "Give 1 or more."),
        ({"n": 100}, "n", "Give 32 or less."),
        ({"size": "large"}, "size", 'such as "512x512"'),
        ({"size": "100x64"}, "size", "Give 96 or 112."),
        ({"size": "9000x9000"}, "size", "8 to 2048"),
        ({"output_format": "webp"}, "output_format", "Give 'png'."),
        ({"background": "transparent"}, "background", "Give 'auto' or 'opaque'."),
        ({"response_format": "jpeg"}, "response_format", "Give 'url' or 'b64_json'."),
        ({"stream": True}, "stream", "Give False."),
        ({"extra_body": {"scheduler": "eulerr"}}, "scheduler", "'euler_ancestral'"),
        ({"extra_body": {"strenth": 1}}, "strenth", "correct its spelling"),
    ],
    ids=str,
)
def test_bad_requests_name_their_parameter(plane, user, arguments, param, said):
    painter = Painter()
    with openai_client(plane, user, painter) as client, pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"model": "tiny", "prompt": "a dog", **arguments})
    error = caught.value
    assert (error.param, error.type, error.code) == (param, "invalid_request_error", "invalid_value")
    assert said in error.body["message"]
    assert painter.asked == []


@pytest.mark.parametrize(
    ("painter", "kind"),
    [
        (Painter(DrawRefusal(reason="busy", detail=""), 429), openai.RateLimitError),
        (Painter(DrawRefusal(reason="timeout", detail=""), 504), openai.InternalServerError),
        (Painter(status=503), openai.InternalServerError),
        (Painter(DrawRefusal(reason="invalid", detail="Two words."), 422), openai.BadRequestError),
    ],
)
def test_refusals_are_the_errors_that_openais_client_knows(plane, user, painter, kind):
    with openai_client(plane, user, painter) as client, pytest.raises(kind) as caught:
        client.images.generate(model="tiny", prompt="a dog")
    assert caught.value.body["message"]


def test_a_wrong_key_and_a_wrong_model(plane, user):
    with openai_client(plane, user, Painter(), key="booth_x_y") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.images.generate(model="tiny", prompt="a dog")
        assert caught.value.code == "invalid_api_key"
    with openai_client(plane, user, Painter()) as client, pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model="dall-e-3", prompt="a dog")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "no model or base model 'dall-e-3'" in caught.value.body["message"]
