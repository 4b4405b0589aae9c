"""Jobs of Textual Inversion: what they resolve to, what is refused, and their model in the formats that it has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import HOST, RECIPE, Driver, PlaneAndStore, User, started
from inverted_models import rows
from safetensors.torch import load_file
from stored_base import store_base, store_references
from tiny_base import write_tiny_base

from booth import Client, FormatError, Model
from booth.contract.attempts import Brief, Published
from booth_service.control import base_models
from booth_service.control.plane import Plane
from booth_service.publish.publisher import Export, publish_manifest

pytestmark = pytest.mark.s3

INVERSION = {"method": "textual_inversion"}
DIALS = {"steps": 30, "learning_rate": 0.01}
RECIPE_OF_ROWS = RECIPE.model_copy(
    update={
        "inversion_steps": 50,
        "inversion_learning_rate": 0.005,
        "inversion_train_batch_size": 3,
        "inversion_templates": ["a photo of {}", "{}"],
    }
)


@pytest.fixture
def base(plane: Plane, tmp_path: Path) -> Path:
    """A base model whose recipe has dials for the method."""
    folder = write_tiny_base(tmp_path / "base")
    files = store_base(plane.store, folder)
    references = {"float16": store_references(plane.store, folder, files)}
    with plane.database.write() as session:
        base_models.register(session, "tiny", RECIPE_OF_ROWS, files, references, default=True, now=plane.now())
    return folder


def test_a_job_takes_the_recipes_dials_for_the_method(plane: Plane, user: User, base: Path) -> None:
    job = user.submit(plane, **INVERSION, class_noun="teapot").json()
    params = job["params"]
    assert job["name"] == "sks"
    assert (params["method"], params["token"], params["instance_prompt"]) == (
        "textual_inversion", "sks", "a photo of sks",
    )  # fmt: skip
    assert (params["steps"], params["learning_rate"], params["train_batch_size"]) == (50, 0.005, 3)
    assert (params["num_class_images"], params["prior_loss_weight"], params["train_text_encoder"]) == (0, 0, False)
    assert params["caption_templates"] == ["a photo of {}", "{}"]
    assert params["sample_prompts"] == ["a photo of sks", "a photo of sks on the beach"]
    assert params["initializer_token"] is None


def test_what_is_asked_wins(plane: Plane, user: User, base: Path) -> None:
    options = {"instance_prompt": "a painting of sks", "initializer_token": "mug"}
    params = user.submit(plane, **INVERSION, **DIALS, train_batch_size=1, options=options).json()["params"]
    assert (params["steps"], params["learning_rate"], params["train_batch_size"]) == (30, 0.01, 1)
    assert (params["caption_templates"], params["instance_prompt"]) == ([], "a painting of sks")
    assert params["initializer_token"] == "mug"


def test_dreambooth_is_as_before(plane: Plane, user: User, base: Path) -> None:
    params = user.submit(plane).json()["params"]
    assert (params["method"], params["instance_prompt"]) == ("dreambooth", "a photo of sks dog")
    assert (params["steps"], params["caption_templates"], params["train_batch_size"]) == (10, [], 2)


@pytest.mark.parametrize(
    ("dials", "field", "said"),
    [
        ({"num_class_images": 8}, "num_class_images", "It has no class images"),
        ({"options": {"text_encoder_stop_step": 3}}, "options.text_encoder_stop_step", "trains no weight of the text"),
        ({"token": "qqqq"}, "token", "It is 4 pieces of the base model's tokenizer (q q q q</w>)"),
        ({"options": {"initializer_token": "sks dog"}}, "options.initializer_token", "It is 2 pieces"),
    ],
)
def test_what_the_method_has_no_place_for_is_refused(plane, user, base, dials, field, said):
    answer = user.submit(plane, **{**INVERSION, **dials})
    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert problem["field"] == field
    assert said in problem["message"]
    assert problem["remedy"]


def test_all_that_is_wrong_is_said_at_once(plane: Plane, user: User, base: Path) -> None:
    further = {"class_noun": "cat", "token": "zwx", "images": user.put_photos(plane)}
    own = [{key: photo[key] for key in ("sha256", "bytes")} for photo in user.put_photos(plane)]
    answer = user.submit(plane, **INVERSION, more_subjects=[further], class_images=own)
    assert {problem["field"] for problem in answer.json()["problems"]} == {"more_subjects", "class_images"}


def test_a_recipe_that_is_silent_needs_steps_and_rate(plane: Plane, user: User) -> None:
    problems = user.submit(plane, **INVERSION).json()["problems"]
    assert [problem["field"] for problem in problems] == ["steps", "learning_rate"]
    assert "inversion_steps" in problems[0]["remedy"]
    assert user.submit(plane, **INVERSION, **DIALS).status_code == 202


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({**INVERSION, "train_text_encoder": True}, "train_text_encoder has no effect with textual_inversion"),
        ({**INVERSION, "prior_loss_weight": 0.5}, "prior_loss_weight has no effect"),
        ({**INVERSION, "class_prompt": "a dog"}, "class_prompt has no effect"),
        ({**INVERSION, "options": {"text_encoder_learning_rate": 1e-5}}, "text_encoder_learning_rate has no effect"),
        ({**INVERSION, "options": {"optimizer": "adamw_8bit"}}, "optimizer adamw_8bit saves nothing"),
        ({"options": {"initializer_token": "dog"}}, 'initializer_token has no effect without method "textual_invers'),
    ],
)
def test_dials_without_effect_are_named(plane, user, base, dials, said):
    warnings = user.submit(plane, images=user.put_photos(plane, 3), **dials).json()["warnings"]
    assert sum(said in warning for warning in warnings) == 1, warnings


@pytest.fixture
def driver(plane: Plane, user: User, base: Path, tmp_path: Path) -> Driver:
    """The job has published."""
    driver = started(plane, user, **INVERSION, class_noun="teapot")
    brief = Brief.model_validate(driver.call("GET", "").json())
    files = Export(brief, plane.store, str(tmp_path / "node"))(rows(base), lambda *_: None)
    key, sha256 = publish_manifest(brief, files, plane.store)
    said = Published(fence=brief.fence, manifest_key=key, manifest_sha256=sha256)
    answer = driver.call("POST", "/published", **said.model_dump())
    assert answer.json() == {}, answer.text
    return driver


@pytest.fixture
def model(driver: Driver, user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    key = user.http.headers["Authorization"].removeprefix("Bearer ")
    with Client(f"http://{HOST}", key, http=PlaneAndStore(user.http._transport)) as client:
        client._transport.sleep = lambda _: None
        yield client.models.get(driver.job["model_id"])


def test_the_model_comes_in_every_format_it_has(model: Model, base: Path, tmp_path: Path) -> None:
    assert (model.prompt_prefix, model.record.method) == ("sks", "textual_inversion")
    learned = load_file(model.download(tmp_path / "sks.safetensors", format="embedding"))
    assert [(key, row.shape) for key, row in learned.items()] == [("<sks>", (1, 16))]
    folder = model.download(tmp_path / "folder")
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in base.iterdir())
    encoder = load_file(folder / "text_encoder" / "model.safetensors")
    [embedding] = [tensor for name, tensor in encoder.items() if name.endswith("token_embedding.weight")]
    assert (embedding == learned["<sks>"].half()).all(dim=1).sum() == 1
    assert model.download(tmp_path / "original.safetensors", format="original").stat().st_size > 0
    with pytest.raises(FormatError, match="Its format is 'embedding'"):
        model.download(tmp_path / "lora.safetensors", format="lora")
