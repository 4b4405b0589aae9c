"""One engine, several models: right pictures for each, whatever was drawn before or beside them."""

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from published_models import base_ref, publish_models, request
from safetensors.torch import load_file
from stored_base import fetch
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.attempts import Manifest
from booth.contract.serving import DrawRequest, ModelRef
from booth_service.diffusion.components import family_of
from booth_service.errors import ObjectMissing, StorageError
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3


WRITERS = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}


@pytest.fixture(scope="module", params=WRITERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="module")
def models(base: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    """The base and two models that were "trained" from it."""
    names = [f"{base.name}-{name}" for name in ("one", "two")]
    published = publish_models(object_store, base, names, tmp_path_factory.mktemp("scratch"))
    return {"base": base_ref(object_store, base), "one": published[names[0]], "two": published[names[1]]}


def draw(engine: Engine, asked: DrawRequest) -> list[str]:
    """The pictures, PNG in base64."""
    return [picture.png_base64 for picture in engine.submit(asked).future.result().pictures]


def pixels(png_base64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png_base64))), float)


LIMITS = EngineLimits(BatchLimits(size=4, pixels=2**20, is_fixed=True))


@pytest.fixture
def engine(object_store: ObjectStore, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(object_store, "cpu", LIMITS, scratch_dir=str(tmp_path))
    yield engine
    engine.close()


def test_models_take_turns_without_mixing(engine: Engine, models: dict[str, ModelRef]) -> None:
    first = {name: draw(engine, request(model, 1)) for name, model in models.items()}
    again = {name: draw(engine, request(model, 1)) for name, model in reversed(models.items())}
    assert first == again
    assert len({tuple(pictures) for pictures in first.values()}) == 3


def test_a_picture_does_not_depend_on_its_neighbours(engine: Engine, models: dict[str, ModelRef]) -> None:
    alone = draw(engine, request(models["one"], 7))
    together = draw(engine, request(models["one"], 3, 4, 5, 6, 7, 8))
    assert together[4] == alone[0]
    assert len(set(together)) == 6


def test_a_picture_is_the_one_that_plain_diffusers_draws(
    engine: Engine, models: dict[str, ModelRef], object_store: ObjectStore, tmp_path: Path
) -> None:
    manifest = Manifest.model_validate_json(object_store.get(models["one"].manifest_key or ""))
    fetch(object_store, manifest.files, tmp_path / "plain")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "plain", safety_checker=None)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7, 8)]
    prompts = ["a photo of sks teapot"] * 4
    theirs = plain(
        prompts, generator=generators, guidance_scale=3.0, num_inference_steps=3, height=32, width=32
    ).images  # no negative prompt: Stable Diffusion XL then guides away from zeros
    for ours, picture in zip(draw(engine, request(models["one"], 5, 6, 7, 8)), theirs, strict=True):
        assert np.abs(pixels(ours) - np.asarray(picture, float)).max() <= 1


def test_negative_prompts_of_neighbours_do_not_matter(engine: Engine, models: dict[str, ModelRef]) -> None:
    alone = draw(engine, request(models["one"], 1, 2))
    negative = draw(engine, request(models["one"], 1, 2, negative_prompt="a dog"))
    assert set(alone).isdisjoint(negative)
    both = request(models["one"], 1, 2)
    other = request(models["one"], 1, 2, negative_prompt="a dog")
    mixed = both.model_copy(update={"draws": [both.draws[0], other.draws[0], both.draws[1], other.draws[1]]})
    assert draw(engine, mixed) == [alone[0], negative[0], alone[1], negative[1]]


def test_half_precision_draws_about_the_same(engine: Engine, models: dict[str, ModelRef]) -> None:
    """As on GPUs; Stable Diffusion XL's VAE decodes in fp32 all the same, for it says so (force_upcast)."""
    exact = draw(engine, request(models["one"], 1))
    half = Engine(engine.models.store, "cpu", LIMITS, scratch_dir=engine.models.scratch_dir)
    half.models.dtype = torch.float16
    for _ in range(2):
        pictures = draw(half, request(models["one"], 1))
        assert np.abs(pixels(pictures[0]) - pixels(exact[0])).mean() < 2
    half.close()


def test_bytes_that_were_changed_are_refused_and_harm_nobody(
    engine: Engine, models: dict[str, ModelRef], object_store: ObjectStore
) -> None:
    good = draw(engine, request(models["two"], 1))
    body = object_store.get(models["one"].manifest_key or "")
    manifest = Manifest.model_validate_json(body)
    swapped = object_store.get(manifest.changed[0].key)[:-1] + b"x"
    bad_key = "engine/swapped.safetensors"
    object_store.put(bad_key, swapped)
    forged_file = manifest.changed[0].model_copy(update={"key": bad_key})
    forged = manifest.model_copy(update={"changed": [forged_file]}).model_dump_json().encode()
    object_store.put("engine/forged.json", forged)
    for sha256 in (models["one"].manifest_sha256, hashlib.sha256(forged).hexdigest()):
        bad = models["one"].model_copy(update={"manifest_key": "engine/forged.json", "manifest_sha256": sha256})
        with pytest.raises(StorageError, match="does not have the recorded SHA-256"):
            draw(engine, request(bad, 1))
    assert draw(engine, request(models["two"], 1)) == good


def test_a_forgotten_model_is_nowhere_any_more(engine: Engine, models: dict[str, ModelRef]) -> None:
    base, one, two = (draw(engine, request(models[name], 1)) for name in ("base", "one", "two"))
    draw(engine, request(models["one"], 1))
    sha256 = models["one"].manifest_sha256 or ""
    known = engine.models.known(sha256)
    assert known is not None
    assert sha256 in engine.models.cache
    held = [tensor for tensors in known.skeleton.weights_of(sha256).values() for tensor in tensors.values()]
    assert held
    assert all(tensor.any() for tensor in held)
    before = engine.models.cache.bytes
    engine.forget(sha256)
    assert sha256 not in engine.models.cache
    assert engine.models.cache.bytes < before
    assert not any(tensor.any() for tensor in held)
    assert draw(engine, request(models["base"], 1)) == base
    assert draw(engine, request(models["two"], 1)) == two
    with pytest.raises(ObjectMissing, match="was deleted"):  # a request that was on its way
        draw(engine, request(models["one"], 1))
    assert one
    assert sha256 not in engine.models.cache
    engine.forget("never heard of")


def test_only_files_of_the_base_model_lie_on_the_disk(engine: Engine, models: dict[str, ModelRef]) -> None:
    draw(engine, request(models["one"], 1))
    blobs = Path(engine.models.scratch_dir or "") / "booth-base-models" / "blobs"
    assert {blob.name for blob in blobs.iterdir()} == {file.sha256 for file in models["one"].base_files}


def test_the_published_folder_is_half_precision_and_loads(
    base: Path, models: dict[str, ModelRef], object_store: ObjectStore, tmp_path: Path
) -> None:
    manifest = Manifest.model_validate_json(object_store.get(models["one"].manifest_key or ""))
    fetch(object_store, manifest.files, tmp_path)
    published = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    trained = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    assert published.keys() == trained.keys()
    assert {tensor.dtype for tensor in published.values()} == {torch.float16}
    trained = family_of(base).trained_folders(train_text_encoder=True)
    assert [file.path.split("/")[0] for file in manifest.changed] == list(trained)
