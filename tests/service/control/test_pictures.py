"""Pictures: whose they are, what is asked of Serve, and what is refused before anything is."""

import base64
import io
import json
import logging

import httpx2
import photo_files
import pytest
from control_plane import RECIPE, http, photo, started
from painter import Painter, png, png_base64, served_by
from PIL import Image

from booth.contract import limits
from booth.contract.event_stream import EventReader
from booth.contract.serving import DrawRefusal
from booth_service.control.middleware import MAX_BODY_BYTES, MAX_PICTURE_BODY_BYTES
from booth_service.control.records import Model
from booth_service.storage import keys

BASE = "/v1/base-models/tiny/generate"  # multiples of 16: see control_plane.tiny_base
EDIT = {"source_prompt": "a dog in the snow", "mode": "replace"}


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def model_id(plane, user) -> str:
    driver = started(plane, user)
    driver.publish()
    return driver.job["model_id"]


def ask(plane, user, painter, path: str = BASE, accept: str = "application/json", **body):
    headers = {"Authorization": user.http.headers["Authorization"], "Accept": accept}
    with http(served_by(plane, painter)) as client:
        return client.post(path, json={"prompts": ["p"], **body}, headers=headers)


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_models_pictures_follow_prompt_and_seed(plane, user, painter, model_id):
    path = f"/v1/models/{model_id}/generate"
    answer = ask(plane, user, painter, path, prompts=["one", "two"], num_images=2, seed=5).json()
    assert [(picture["prompt"], picture["seed"]) for picture in answer["pictures"]] == [
        ("one", 5),
        ("one", 6),
        ("two", 5),
        ("two", 6),
    ]
    assert [picture["png_base64"] for picture in answer["pictures"]] == [png_base64(seed) for seed in (5, 6, 5, 6)]
    [asked] = painter.asked
    with plane.database.read() as session:
        model = session.get_one(Model, model_id)
    assert (asked.model.manifest_key, asked.model.manifest_sha256) == (model.manifest_key, model.manifest_sha256)
    assert (asked.guidance_scale, asked.num_inference_steps, asked.width, asked.height) == (4.0, 20, 64, 64)
    assert asked.timeout_s == plane.settings.serving_timeout_s
    assert painter.secrets == ["stack secret"]


def test_what_is_asked_for_wins_over_the_recipe(plane, user, painter):
    body = {"guidance_scale": 0, "num_inference_steps": 3, "negative_prompt": "n", "scheduler": "euler_ancestral"}
    answer = ask(plane, user, painter, **body, width=96, height=32, preview_interval_steps=2).json()
    assert (answer["guidance_scale"], answer["num_inference_steps"]) == (0, 3)
    assert (answer["width"], answer["height"], answer["scheduler"]) == (96, 32, "euler_ancestral")
    [asked] = painter.asked
    assert (asked.width, asked.height, asked.scheduler, asked.preview_interval_steps) == (96, 32, "euler_ancestral", 2)
    assert asked.draws[0].negative_prompt == "n"
    assert (asked.model.manifest_key, asked.image_base64) == (None, None)


def test_one_side_alone_takes_the_recipes_other(plane, user, painter):
    ask(plane, user, painter, width=96)
    assert (painter.asked[0].width, painter.asked[0].height) == (96, RECIPE.resolution)


def test_an_edit_goes_with_every_picture_and_brings_its_source(plane, user, painter):
    body = {"prompts": ["a cat in the snow", "a bear in the snow"], "seed": 1, "edit": EDIT}
    answer = ask(plane, user, painter, **body).json()
    assert [draw.edit.source_prompt for draw in painter.asked[0].draws] == [EDIT["source_prompt"]] * 2
    assert [picture["source_png_base64"] for picture in answer["pictures"]] == [png_base64(101)] * 2
    assert answer["pictures"][0]["batch_size"] == 4


def test_without_a_seed_one_is_drawn_and_told(plane, user, painter):
    seeds = [ask(plane, user, painter).json()["pictures"][0]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert seeds == [asked.draws[0].seed for asked in painter.asked]


def test_the_highest_seed_goes_round(plane, user, painter):
    answer = ask(plane, user, painter, num_images=2, seed=2**63 - 1).json()
    assert [picture["seed"] for picture in answer["pictures"]] == [2**63 - 1, 0]


@pytest.mark.parametrize(
    ("body", "field", "value", "remedy"),
    [
        ({"prompts": ["x" * 10_000]}, "prompts.0", "xxx", "Shorten it to 1000 characters."),
        ({"prompts": [""]}, "prompts.0", "''", "Give at least 1"),
        ({"prompts": ["a\x00dog"]}, "prompts.0", r"'a\x00dog'", "Remove them."),
        ({"prompts": ["\x1b[2Jdog"]}, "prompts.0", r"'\x1b[2Jdog'", "Remove them."),
        ({"negative_prompt": "a\x07"}, "negative_prompt", r"'a\x07'", "Remove them."),
        ({"num_images": 0}, "num_images", "0", "Give 1 or more."),
        ({"num_images": 10_000}, "num_images", "10000", "Give 32 or less."),
        ({"prompts": ["a", "b"], "num_images": 17}, "num_images", "17", "at most 32 pictures"),
        ({"num_inference_steps": 0}, "num_inference_steps", "0", "Give 1 or more."),
        ({"width": 8192, "height": 64}, "width", "8192", "Give 2048 or less."),
        ({"width": 2048, "height": 2048, "num_images": 9}, "width", "2048", "33.6 megapixels are the most"),
        ({"width": 100}, "width", "100", "Give 96 or 112."),
        ({"height": 8}, "height", "8", "Give 16."),
        ({"scheduler": "eulerr"}, "scheduler", "'eulerr'", "'dpmsolver++', 'unipc', 'euler'"),
        ({"strength": 0.5}, "strength", "0.5", "Give image"),
        ({"strength": 1.5}, "strength", "1.5", "Give 1.0 or less."),
        ({"prompts": ["a", "a dog in the snow"], "edit": EDIT}, "prompts.1", "'a dog in the snow'", "Change a word"),
        ({"edit": {**EDIT, "mode": "swap"}}, "edit.mode", "'swap'", "'replace', 'refine' or 'reweight'"),
        ({"edit": {**EDIT, "words": {"snow": 99}}}, "edit.words.snow", "99", "Give 10.0 or less."),
        ({"guidance_scale": -1}, "guidance_scale", "-1", "Give 0.0 or more."),
        ({"seed": -1}, "seed", "-1", "Give 0 or more."),
        ({"image": "x"}, "image", "'x'", "base64"),
        ({"image": in_base64(b"no picture")}, "image", "10 bytes", "Send JPEG, PNG or WebP files."),
        ({"image": in_base64(photo(size=(16, 16)))}, "image", "bytes", "Each side needs 32 pixels"),
        ({"negativ_prompt": "n"}, "negativ_prompt", "'n'", "correct its spelling"),
    ],
    ids=str,
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_bad_input_is_named_with_value_and_remedy(plane, user, painter, accept, body, field, value, remedy):
    answer = ask(plane, user, painter, accept=accept, **body)
    assert answer.status_code == 422, answer.text
    [problem] = answer.json()["problems"]
    assert problem["field"] == field
    assert value in problem["value"]
    assert problem["message"]
    assert remedy in problem["remedy"]
    assert painter.asked == []


def test_all_that_is_wrong_comes_at_once(plane, user, painter):
    answer = ask(plane, user, painter, width=100, height=100, strength=1, num_images=20, prompts=["a", "b"])
    fields = [problem["field"] for problem in answer.json()["problems"]]
    assert fields == ["width", "height", "num_images", "strength"]


@pytest.mark.parametrize(
    "prompt", ["a dog\n\tin the snow", "كلب \u202bفي\u202c الثلج", "\u202edog", "🐶 <b>&amp;", "a\u2028b"]
)
def test_prompts_are_data_and_come_back_as_they_were(plane, user, painter, prompt):
    assert ask(plane, user, painter, prompts=[prompt]).json()["pictures"][0]["prompt"] == prompt
    assert painter.asked[0].draws[0].prompt == prompt


def test_prompts_are_in_no_log(plane, user, caplog):
    refusal = DrawRefusal(reason="invalid", detail="The word 'penguin' is not in the prompt.")
    with caplog.at_level(logging.DEBUG):
        for painter in (Painter(), Painter(refusal, 422)):
            for accept in ("application/json", "text/event-stream"):
                ask(plane, user, painter, accept=accept, prompts=["a penguin"], negative_prompt="penguins")
        ask(plane, user, Painter(), prompts=["penguin\x00"])
    assert caplog.records
    assert "penguin" not in caplog.text


def test_the_picture_to_start_from_is_brought_to_size_without_its_metadata(plane, user, painter, tmp_path):
    data = photo_files.sideways_jpeg(tmp_path).read_bytes()  # 64 x 96 upright
    answer = ask(plane, user, painter, image=in_base64(data), strength=0.25, width=32, height=32)
    assert answer.status_code == 200, answer.text
    [asked] = painter.asked
    assert asked.strength == 0.25
    start = Image.open(io.BytesIO(base64.b64decode(asked.image_base64)))
    assert (start.format, start.size, start.mode) == ("PNG", (32, 32), "RGB")
    assert not start.getexif()
    upright = photo_files.picture(96, 64).rotate(-90, expand=True).crop((0, 16, 64, 80)).resize((32, 32))
    pairs = zip(start.getdata(), upright.getdata(), strict=True)
    assert max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)) < 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (photo_files.bomb_png, "13000 x 13000 pixels"),
        (photo_files.truncated_jpeg, "The file is damaged"),
        (photo_files.text_named_jpg, "not a photo in a known format"),
        (photo_files.animated_webp, "animation of 2 frames"),
        (photo_files.animated_gif, "not a photo in a known format"),
    ],
)
def test_a_picture_to_start_from_that_is_none_is_refused(plane, user, painter, tmp_path, make, message):
    answer = ask(plane, user, painter, image=in_base64(make(tmp_path).read_bytes()))
    [problem] = answer.json()["problems"]
    assert (answer.status_code, problem["field"]) == (422, "image")
    assert message in problem["message"]
    assert painter.asked == []


def test_a_picture_to_start_from_has_a_limit_and_other_bodies_a_lower_one(plane, user, painter):
    large = photo(size=(1700, 1600))
    assert MAX_BODY_BYTES < len(large) < limits.MAX_INIT_IMAGE_BYTES
    assert ask(plane, user, painter, image=in_base64(large), seed=1).status_code == 200
    longer = large + b"\0" * (limits.MAX_INIT_IMAGE_BYTES + 1 - len(large))
    answer = ask(plane, user, painter, image=in_base64(longer))
    assert (answer.status_code, answer.json()["problems"][0]["remedy"]) == (422, "Send at most 8 MiB.")
    assert ask(plane, user, painter, image="x" * MAX_PICTURE_BODY_BYTES).status_code == 400
    assert ask(plane, user, painter, "/v1/jobs/prepare", image=in_base64(large)).status_code == 400


def test_links_lead_to_stored_pictures(plane, user, painter, clock):
    body = {"num_images": 2, "seed": 3, "edit": EDIT, "response_format": "link"}
    pictures = ask(plane, user, painter, **body).json()["pictures"]
    store = plane.store
    prefix = f"{keys.PICTURES}{clock.moment.date()}/{user.tenant_id}/"
    assert len(list(store.keys(prefix))) == 4
    fetched = [_fetched(picture[name]) for name in ("url", "source_url") for picture in pictures]
    assert fetched == [png(seed) for seed in (3, 4, 103, 104)]
    assert {picture["png_base64"] for picture in pictures} == {""}
    assert all("X-Amz-Expires=900" in picture["url"] for picture in pictures)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_models_owner_is_checked_in_every_call(plane, user, stranger, painter, model_id, accept):
    path = f"/v1/models/{model_id}/generate"
    assert ask(plane, user, painter, path, accept).status_code == 200
    assert ask(plane, stranger, painter, path, accept).status_code == 404
    with http(plane) as client:
        client.delete(f"/v1/models/{model_id}", headers={"Authorization": user.http.headers["Authorization"]})
    assert ask(plane, user, painter, path, accept).status_code == 404
    assert len(painter.asked) == 1


def test_an_unknown_base_model_is_not_found(plane, user, painter):
    assert ask(plane, user, painter, "/v1/base-models/sd9/generate").status_code == 404


def test_events_follow_the_drawing(plane, user, painter):
    body = {"prompts": ["one", "two"], "seed": 3, "preview_interval_steps": 2, "edit": EDIT}
    answer = ask(plane, user, painter, accept="text/event-stream", **body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [json.loads(line) for line in EventReader().feed(answer.content)]
    assert [event["kind"] for event in events] == ["step", "step", "step", "picture", "picture", "done"]
    assert events[1] == {
        "kind": "step",
        "step": 2,
        "total_steps": 3,
        "places": [0, 1],
        "previews": [png_base64(3)] * 2,
    }
    assert [(event["places"], event["picture"]["prompt"]) for event in events[3:5]] == [([0], "one"), ([1], "two")]
    assert events[3]["picture"]["source_png_base64"] == png_base64(103)
    done = events[-1]["answer"]
    assert (done["pictures"], done["width"], done["num_inference_steps"]) == ([], 64, 20)


def test_links_come_in_events_too(plane, user, painter):
    answer = ask(plane, user, painter, accept="text/event-stream", seed=9, response_format="link")
    [picture] = [json.loads(line)["picture"] for line in EventReader().feed(answer.content) if b'"url"' in line]
    assert _fetched(picture["url"]) == png(9)


def _fetched(url: str) -> bytes:
    return httpx2.get(url, trust_env=False).raise_for_status().content
