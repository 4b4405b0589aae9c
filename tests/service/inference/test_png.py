"""What a picture's file says of itself, read back by Pillow and by a strict XML parser."""

import base64
import io
import json
import sys
import types
from xml.etree import ElementTree

import pytest
from PIL import Image

from booth.contract.drawing import PromptEdit
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth_service.inference.png import SOURCE_TYPE, png_base64, settings_of

NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "iptc": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

PROMPTS = {
    "plain": "a sks dog",
    "markup": "<script>alert('\"')</script> &amp; ]]> <?xpacket end='w'?> {prompt}",
    "emoji": "a dog 🐶 in Zürich, 東京",
    "bidi": "\u202eabc\u2066كلب\u2069",
    "breaks": "a\r\nb\rc\n\td",
    "separators": "a\u2028b\u0085c",
}
UNSTORABLE = {"nul": "a\x00b", "escape": "a\x1b[0mb", "surrogate": "a\ud800b", "noncharacter": "a\uffffb"}


def written(prompt: str, **settings: str) -> Image.Image:
    png = png_base64(Image.new("RGB", (8, 8), "red"), prompt=prompt, seed=5, model="model-1", settings=settings)
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    image.load()
    return image


def xmp_of(image: Image.Image) -> ElementTree.Element:
    return ElementTree.fromstring(image.info["xmp"])


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_picture_says_what_it_was_made_from(prompt):
    image = written(prompt, scheduler="ddim", negative_prompt=prompt)
    said = {name: image.text[name] for name in ("prompt", "negative_prompt", "seed", "model", "scheduler")}
    assert said == {
        "prompt": prompt,
        "negative_prompt": prompt,
        "seed": "5",
        "model": "model-1",
        "scheduler": "ddim",
    }
    assert xmp_of(image).find(".//dc:description/rdf:Alt/rdf:li", NAMESPACES).text == prompt


@pytest.mark.parametrize("prompt", [*PROMPTS.values(), *UNSTORABLE.values()], ids=[*PROMPTS, *UNSTORABLE])
def test_it_always_says_that_a_model_made_it(prompt):
    image = written(prompt)
    assert SOURCE_TYPE == MARK
    assert xmp_of(image).find(".//iptc:DigitalSourceType", NAMESPACES).text == MARK
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("prompt", UNSTORABLE.values(), ids=UNSTORABLE)
def test_what_no_file_may_hold_stands_as_a_replacement(prompt):
    stored = written(prompt).text["prompt"]
    assert (stored[0], stored[1], stored[-1]) == ("a", "\ufffd", "b")


def test_pillow_reads_it(monkeypatch):
    """Pillow asks for defusedxml, which guards against hostile XML; this XML is ours."""
    monkeypatch.setitem(sys.modules, "defusedxml", types.SimpleNamespace(ElementTree=ElementTree))
    description = written("a <dog>").getxmp()["xmpmeta"]["RDF"]["Description"]
    assert description["DigitalSourceType"] == MARK
    assert description["description"]["Alt"]["li"]["text"] == "a <dog>"


def test_settings_are_what_it_takes_to_draw_it_again():
    edit = PromptEdit(source_prompt="a dog", words={"snow": 2})
    draw = Draw(prompt="a cat", negative_prompt="blur", seed=1, edit=edit)
    request = DrawRequest(
        model=ModelRef(model_id="model-1", base_model="b", base_files=[]),
        draws=[draw],
        guidance_scale=7.5,
        num_inference_steps=30,
        width=96,
        height=64,
        scheduler="unipc",
        image_base64="x",
        strength=0.25,
    )
    said = settings_of(request, draw)
    assert PromptEdit(**json.loads(said.pop("edit"))) == edit
    assert said == {
        "negative_prompt": "blur",
        "scheduler": "unipc",
        "num_inference_steps": "30",
        "guidance_scale": "7.5",
        "size": "96x64",
        "strength": "0.25",
    }
    assert not {"strength", "edit"} & set(
        settings_of(request.model_copy(update={"image_base64": None}), draw.model_copy(update={"edit": None}))
    )
