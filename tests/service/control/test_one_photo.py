"""Jobs of the method "ip_adapter": what is taken, what is refused with which words, what their manifests must hold."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from control_plane import RECIPE, Driver, both_databases, put_file, started, tiny_base, weights
from safetensors.numpy import save

from booth.contract.attempts import Manifest, Published, StoredFile
from booth.contract.ip_adapter import EMBEDS_PATH
from booth.contract.jobs import Params
from booth_service.control import base_models
from booth_service.control.records import Job
from booth_service.storage import keys

pytestmark = pytest.mark.s3

WIDTH = 6
EMBEDS = np.concatenate([np.zeros((1, 1, WIDTH), np.float32), np.ones((1, 1, WIDTH), np.float32)])


def adapter_files(store) -> list[StoredFile]:
    """An IP-Adapter of a few hundred bytes, as its record names it."""
    tensors = {
        "image_proj.proj.weight": np.ones((8, WIDTH), np.float32),
        "ip_adapter.1.to_k_ip.weight": np.ones(1, np.float32),
    }
    return [
        put_file(store, "ip_adapter/image_encoder/config.json", b"{}"),
        put_file(store, "ip_adapter/tiny.safetensors", save(tensors)),
    ]


@pytest.fixture
def with_adapter(plane) -> list[StoredFile]:
    """The base model "tiny" has an adapter."""
    files = adapter_files(plane.store)
    with plane.database.write() as session:
        base_models.register(
            session, "tiny", RECIPE, tiny_base(plane.store), None, files, default=True, now=plane.now()
        )
    return files


def photo_job(user, plane, **dials) -> Any:
    return user.submit(plane, token=None, method="ip_adapter", **dials)


def problems(answer) -> dict[str, tuple[str, str]]:
    assert answer.status_code == 422
    return {each["field"]: (each["message"], each["remedy"]) for each in answer.json()["problems"]}


@both_databases
def test_one_photo_and_a_noun_make_a_job(plane, user, with_adapter):
    job = photo_job(user, plane).json()
    params = job["params"]
    assert (params["method"], params["token"], params["steps"]) == ("ip_adapter", "", 0)
    assert (params["num_class_images"], params["prior_loss_weight"]) == (0, 0)
    assert params["ip_adapter_scale"] == RECIPE.ip_adapter_scale == 0.6
    assert (job["name"], job["warnings"]) == ("dog", [])
    assert params["instance_prompt"] == "a photo of a dog"
    scaled = photo_job(user, plane, key="k2", options={"ip_adapter_scale": 0.9})
    assert scaled.json()["params"]["ip_adapter_scale"] == 0.9


def test_a_base_model_without_an_adapter_is_refused_with_the_command_that_adds_one(plane, user):
    message, remedy = problems(photo_job(user, plane))["method"]
    assert message == "The base model 'tiny' has no IP-Adapter, which reads the photo in place of training."
    assert remedy == "Ask the operator to add it: boothctl base-models add tiny SOURCE --ip-adapter SOURCE2."
    assert user.submit(plane, key="k2").status_code == 202  # others need none


def test_all_that_such_a_job_has_no_room_for_is_said_at_once(plane, user, with_adapter):
    images = user.put_photos(plane, 2)
    cat = {"class_noun": "cat", "images": images[:1]}
    said = problems(user.submit(plane, token="sks", method="ip_adapter", images=images, more_subjects=[cat]))
    assert said["images"][0] == 'The method "ip_adapter" reads one photo, and 2 are given.'
    assert "shows the subject best" in said["images"][1]
    assert said["token"][0] == 'The method "ip_adapter" teaches no token: it trains nothing.'
    assert '"a dog on the beach"' in said["token"][1]
    assert "has one subject" in said["more_subjects"][0]
    twice = photo_job(user, plane, images=[images[0], images[0]])
    assert twice.status_code == 202


def test_photos_that_are_held_out_are_those_it_is_compared_with(plane, user, with_adapter):
    images = user.put_photos(plane, 3)
    others = [{**photo, "held_out": True} for photo in images[1:]]
    answer = photo_job(user, plane, images=[images[0], *others])
    assert answer.status_code == 202
    with plane.database.read() as session:
        rows = session.get_one(Job, answer.json()["id"]).photos
    assert [row["held_out"] for row in rows] == [False, True, True]


def test_it_is_scored_by_the_class_alone_at_one_step_whatever_steps_are_asked_for(plane, user, with_adapter, suite):
    asked = {"prompts": ["a {0} {1} in the snow"], "steps": [0, 75, -1]}
    job = photo_job(user, plane, options={"scoring": asked}).json()
    scoring = job["params"]["scoring"]
    assert (scoring["steps"], job["warnings"]) == ([0, 1], [])
    assert [case["prompt"] for case in scoring["cases"]] == ["a dog in the snow"]


@pytest.mark.parametrize("scale", [0, 1.5])
def test_a_scale_outside_of_its_range_is_refused(plane, user, with_adapter, scale):
    assert "options.ip_adapter_scale" in problems(photo_job(user, plane, options={"ip_adapter_scale": scale}))


def test_dials_of_training_have_no_effect_and_that_is_said(plane, user, with_adapter):
    images = user.put_photos(plane)
    images[0]["caption"] = "a dog"
    options = {"ip_adapter_scale": 0.5, "ema_decay": 0.9}
    warnings = photo_job(user, plane, images=images, steps=5, seed=1, options=options).json()["warnings"]
    names = ["steps", "seed", "ema_decay", "the photo's caption"]
    assert warnings == [f'{name} has no effect with the method "ip_adapter", which trains nothing' for name in names]


@pytest.fixture
def driver(plane, user, with_adapter) -> Driver:
    return started(plane, user, token=None, method="ip_adapter")


def published(driver: Driver, adapter: list[StoredFile], body: bytes, edit=lambda manifest: manifest) -> Any:
    """The embeddings stored and reported as the driver does; `edit` changes the manifest before it is written."""
    store = driver.plane.store
    with driver.plane.database.read() as session:
        job = session.get_one(Job, driver.job_id)
    key = keys.model_file(job.tenant_id, job.id, driver.number, EMBEDS_PATH)
    store.put(key, body)
    embeds = StoredFile(path=EMBEDS_PATH, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    manifest = Manifest(
        job_id=job.id, attempt=1, fence=1, base_model="tiny", changed=[embeds],
        unchanged=[*tiny_base(store), *adapter], params=Params.model_validate(job.params),
    )  # fmt: skip
    written = edit(manifest).model_dump_json().encode()
    manifest_key = keys.model_manifest(job.tenant_id, job.id, 1)
    store.put(manifest_key, written)
    report = Published(fence=1, manifest_key=manifest_key, manifest_sha256=hashlib.sha256(written).hexdigest())
    return driver.call("POST", "/published", **report.model_dump())


def test_the_driver_is_told_of_the_adapter_and_its_model_becomes_visible(plane, user, driver, with_adapter):
    brief = driver.call("GET").json()
    assert [file["path"] for file in brief["adapter_files"]] == [file.path for file in with_adapter]
    assert driver.beat("publishing", step=1).status_code == 200
    assert published(driver, with_adapter, save({"image_embeds": EMBEDS})).status_code == 200
    assert driver.job["status"] == "succeeded"
    [model] = user.http.get("/v1/models").json()["models"]
    assert (model["prompt_prefix"], model["token"], model["class_noun"]) == ("dog", "", "dog")
    files = user.http.get(f"/v1/models/{model['id']}/files").json()["files"]
    assert {file["path"] for file in files} >= {EMBEDS_PATH, "ip_adapter/tiny.safetensors", "model_index.json"}


def test_jobs_that_need_no_adapter_hear_of_none(plane, user, with_adapter):
    assert started(plane, user).call("GET").json()["adapter_files"] == []


def changed(**update: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: manifest.model_copy(update={"changed": [manifest.changed[0].model_copy(update=update)]})


@pytest.mark.parametrize(
    ("tensors", "edit", "said"),
    [
        ({"image_embeds": EMBEDS * np.nan}, None, "holds values that are not finite"),
        ({"image_embeds": EMBEDS[:, :, 1:]}, None, "has shape [2, 1, 5], and the IP-Adapter reads a width of 6"),
        ({"image_embeds": EMBEDS[1:]}, None, "has shape [1, 1, 6]"),
        ({"image_embeds": EMBEDS[:, None]}, None, "has shape [2, 1, 1, 6]"),
        ({"image_embeds": EMBEDS * 0}, None, "the photo's embeddings are those of no photo"),
        ({"image_embeds": EMBEDS.astype(np.int32)}, None, "not floats as image_embeds alone"),
        ({"image_embeds": EMBEDS, "more": EMBEDS}, None, "holds image_embeds, more, not floats"),
        ({"image_embeds": EMBEDS}, changed(bytes=1), "bytes, its manifest says 1"),
        ({"image_embeds": EMBEDS}, changed(bytes=2**40), "bytes, its manifest says 1099511627776"),
        ({"image_embeds": EMBEDS}, changed(sha256="0" * 64), "does not have the SHA-256 that its manifest says"),
        ({"image_embeds": EMBEDS}, changed(key="tenants/other/x"), "outside the attempt's own folder"),
        ({"image_embeds": EMBEDS}, changed(path="unet/x.safetensors"), "changes ip_adapter/image_embeds.safe"),
        (
            {"image_embeds": EMBEDS},
            lambda manifest: manifest.model_copy(update={"unchanged": manifest.unchanged[:-1]}),
            "are not those of its base model and of that one's IP-Adapter",
        ),
        (
            {"image_embeds": EMBEDS},
            lambda manifest: manifest.model_copy(update={"changed": manifest.changed * 2}),
            "changes ip_adapter/image_embeds.safetensors alone",
        ),
    ],
)
def test_embeddings_that_are_not_the_photos_are_refused(driver, with_adapter, tensors, edit, said):
    answer = published(driver, with_adapter, save(tensors), edit or (lambda manifest: manifest))
    assert answer.status_code == 422
    assert said in json.dumps(answer.json()["problems"])
    assert driver.http.get("/v1/models").json()["models"] == []
    assert driver.job["error"]["reason"] == "bad_model"


def test_a_job_that_trains_cannot_publish_a_photo(plane, user, with_adapter):
    driver = started(plane, user)
    answer = published(driver, with_adapter, save({"image_embeds": EMBEDS}))
    assert answer.status_code == 422
    assert "are not those of its base model" in driver.job["error"]["detail"]


def test_trained_weights_are_no_photo(driver):
    answer = driver.publish(weights(0.01))
    assert answer.status_code == 422
    assert "changes ip_adapter/image_embeds.safetensors alone" in driver.job["error"]["detail"]
