"""Models that are one photo, behind the engine: diffusers' own pictures, beside trained models of the same base."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from mixed_traffic import Alone, mixed_traffic, pixels, wrong_pictures
from PIL import Image, ImageOps
from published_models import PHOTO_PARAMS, publish_models, publish_photos, request
from safetensors.torch import load_file
from stored_base import fetch
from tiny_base import write_tiny_base
from tiny_ip_adapter import WEIGHTS, write_tiny_adapter

from booth.contract.attempts import Manifest
from booth.contract.drawing import PromptEdit
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH, FOLDER
from booth.contract.serving import ModelRef
from booth_service.errors import CannotDraw, ObjectMissing
from booth_service.inference.batching import BatchLimits
from booth_service.inference.bulk_blocks import BulkTask, BulkWork, Drawer
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

GREY = Image.radial_gradient("L").resize((48, 40))
PHOTOS = {
    "photo-a": ImageOps.colorize(GREY, "navy", "orange"),
    "photo-b": ImageOps.colorize(GREY.rotate(90), "red", "white"),
}
PROMPT = "a dog on the beach"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "photos")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    return write_tiny_adapter(base.with_name("adapter"), unet)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def models(base: Path, adapter: Path, object_store: ObjectStore, scratch: str) -> dict[str, ModelRef]:
    """Two models of a photo, and a trained one of the same base."""
    photos = publish_photos(object_store, base, adapter, PHOTOS, Path(scratch))
    return photos | publish_models(object_store, base, ["beside-photos"], Path(scratch))


@pytest.fixture
def engine(object_store: ObjectStore, scratch: str) -> Iterator[Engine]:
    engine = Engine(object_store, "cpu", EngineLimits(BatchLimits(4, 2**30)), scratch)
    yield engine
    engine.close()


def drawn(engine: Engine, model: ModelRef, *seeds: int, **more: object) -> list[bytes]:
    answer = engine.submit(request(model, *seeds, prompt=PROMPT, **more)).future.result(60)
    return [pixels(picture) for picture in answer.pictures]


def drawn_by_diffusers(base: Path, adapter: Path, photo: Image.Image, *seeds: int) -> list[bytes]:
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(adapter, subfolder="", weight_name=WEIGHTS, local_files_only=True)
    pipeline.set_ip_adapter_scale(PHOTO_PARAMS.ip_adapter_scale)
    asked = request(ModelRef(model_id="", base_model="", base_files=[]), *seeds)
    return [
        image.tobytes()
        for image in pipeline(
            prompt=[PROMPT] * len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            guidance_scale=asked.guidance_scale,
            num_inference_steps=asked.num_inference_steps,
            width=asked.width,
            height=asked.height,
            ip_adapter_image=photo,
        ).images
    ]


@pytest.mark.parametrize("seeds", [(7,), (7, 8)])
def test_a_photos_pictures_are_diffusers_own(
    engine: Engine, models: dict[str, ModelRef], base: Path, adapter: Path, seeds: tuple[int, ...]
) -> None:
    both = {name: drawn(engine, models[name], *seeds) for name in PHOTOS}
    assert both["photo-a"] == drawn_by_diffusers(base, adapter, PHOTOS["photo-a"], *seeds)
    assert not set(both["photo-a"]) & set(both["photo-b"])


def test_beside_trained_models_nobody_gets_anothers_pictures(
    engine: Engine, models: dict[str, ModelRef], object_store: ObjectStore, tmp_path: Path
) -> None:
    plain = models["photo-a"].model_copy(update={"model_id": "plain", "manifest_key": None, "manifest_sha256": None})
    alone = Alone(object_store, models, tmp_path)
    before = drawn(engine, plain, 3)
    answered = mixed_traffic(engine, models, requests=60)
    assert wrong_pictures(answered, alone) == 0
    assert {each.model for each in answered} == set(models)
    assert len({each.picture.batch_size for each in answered}) > 1
    assert drawn(engine, plain, 3) == before


def test_of_a_deleted_photo_no_copy_is_left(engine: Engine, models: dict[str, ModelRef]) -> None:
    model = models["photo-a"]
    drawn(engine, model, 1)
    assert engine.held() == [model.manifest_sha256]
    engine.forget(model.manifest_sha256 or "")
    assert engine.held() == []
    with pytest.raises(ObjectMissing, match="was deleted"):
        drawn(engine, model, 1)
    drawn(engine, models["photo-b"], 1)


def test_an_edit_with_a_photo_is_refused_and_harms_nobody(engine: Engine, models: dict[str, ModelRef]) -> None:
    model = models["photo-b"]
    expected = drawn(engine, model, 1)
    edited = request(model, 2, prompt=PROMPT)
    edit = PromptEdit(source_prompt="a cat on the beach")
    edited = edited.model_copy(update={"draws": [edited.draws[0].model_copy(update={"edit": edit})]})
    refused, beside = engine.submit(edited), engine.submit(request(model, 1, prompt=PROMPT))
    with pytest.raises(CannotDraw, match="IP-Adapter"):
        refused.future.result(60)
    assert len(beside.future.result(60).pictures) == 1
    assert drawn(engine, model, 1) == expected


def test_bulk_pictures_are_those_of_the_endpoint(
    engine: Engine, models: dict[str, ModelRef], object_store: ObjectStore, scratch: str
) -> None:
    asked = request(models["photo-a"], 5, 6, prompt=PROMPT)
    nothing = asked.model_copy(update={"draws": []})
    work = BulkWork(nothing, 2, object_store, "photo-bulk", 2**30, scratch, use_gpu=False)
    drawer = Drawer(work)
    block = drawer.draw(BulkTask(0, tuple(asked.draws)))
    drawer.engine.close()
    stored = [Image.open(io.BytesIO(object_store.get(each.key))).tobytes() for each in block.pictures]
    assert stored == drawn(engine, models["photo-a"], 5, 6)


def test_warm_photos_need_nothing_more(engine: Engine, models: dict[str, ModelRef]) -> None:
    engine.warm(models["photo-a"])
    assert engine.held() == [models["photo-a"].manifest_sha256]
    drawn(engine, models["photo-a"], 1)
    assert engine.tally.loads == 0


def test_what_is_published_is_a_folder_for_diffusers(
    models: dict[str, ModelRef], engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    """The README's lines."""
    manifest = Manifest.model_validate_json(object_store.get(models["photo-a"].manifest_key or ""))
    fetch(object_store, manifest.files, tmp_path)
    assert [file.path for file in manifest.changed] == [EMBEDS_PATH]
    assert manifest.changed[0].bytes < 10_000

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    pipeline.load_ip_adapter(tmp_path, subfolder=FOLDER, weight_name=WEIGHTS)
    pipeline.set_ip_adapter_scale(0.6)
    embeds = load_file(tmp_path / EMBEDS_PATH)[EMBEDS]
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        PROMPT,
        ip_adapter_image_embeds=[embeds],
        generator=torch.Generator().manual_seed(7),
        guidance_scale=3.0,
        num_inference_steps=3,
        width=32,
        height=32,
    ).images[0]
    assert [image.tobytes()] == drawn(engine, models["photo-a"], 7)
