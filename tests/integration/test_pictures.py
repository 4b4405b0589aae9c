"""Pictures by the base model of the one-machine stack: OpenAI's client and ours, plain and step by step."""

import base64
import io
from xml.etree import ElementTree

import httpx2
import openai
import pytest
from one_machine import OneMachine
from PIL import Image

import booth

pytestmark = pytest.mark.ray
PROMPT = "a photo of a dog in the snow"
MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_openais_client_draws_what_ours_draws(stack: OneMachine) -> None:
    with booth.Client(stack.base_url, stack.api_key) as client, httpx2.Client(trust_env=False) as plain:
        name = client.base_models.default().name
        other = openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key, http_client=plain)
        more = {"seed": 3, "num_inference_steps": 2, "scheduler": "ddim", "negative_prompt": "blur"}
        answer = other.images.generate(
            model=name, prompt=PROMPT, n=2, size="96x64", response_format="b64_json", extra_body=more
        )
        theirs = [base64.b64decode(image.b64_json or "") for image in answer.data or []]
        ours = client.generate(PROMPT, None, 2, 3, None, 2, "blur", width=96, height=64, scheduler="ddim")
        assert [Image.open(io.BytesIO(png)).tobytes() for png in theirs] == [each.image.tobytes() for each in ours]
        assert ours[0].image.size == (96, 64)
        links = other.images.generate(model=name, prompt=PROMPT, n=2, size="96x64", extra_body=more).data or []
        fetched = plain.get(links[1].url or "").content
        assert Image.open(io.BytesIO(fetched)).tobytes() == ours[1].image.tobytes()
        with pytest.raises(openai.NotFoundError):
            other.images.generate(model="dall-e-3", prompt=PROMPT)
    said = Image.open(io.BytesIO(theirs[1])).text
    assert {
        key: said[key] for key in ("prompt", "negative_prompt", "seed", "scheduler", "num_inference_steps", "size")
    } == {
        "prompt": PROMPT,
        "negative_prompt": "blur",
        "seed": "4",
        "scheduler": "ddim",
        "num_inference_steps": "2",
        "size": "96x64",
    }
    assert MARK in [element.text for element in ElementTree.fromstring(said["XML:com.adobe.xmp"]).iter()]


def test_steps_previews_and_a_picture_to_start_from(stack: OneMachine) -> None:
    seen: list[booth.DrawingProgress] = []
    with booth.Client(stack.base_url, stack.api_key) as client:
        start = Image.new("RGB", (90, 200), "blue")
        settings = {"num_images": 2, "seed": 1, "num_inference_steps": 4, "image": start, "strength": 0.75}
        pictures = client.generate(PROMPT, **settings, on_step=seen.append, preview_interval_steps=2)
        plain = client.generate(PROMPT, **settings)
        with pytest.raises(booth.ValidationError, match="penguin"):
            client.generate(
                PROMPT, edit=booth.PromptEdit(source_prompt="a photo of a cat in the snow", blend=["penguin"])
            )
    assert [each.image.tobytes() for each in pictures] == [each.image.tobytes() for each in plain]
    assert [(at.step, at.total_steps) for at in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [len(at.previews) for at in seen] == [0, 2, 0]
    assert sorted(seen[0].places) == [0, 1]
