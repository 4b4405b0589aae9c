"""One engine, several models: right pictures for each, whatever was drawn before or beside them."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load, load_file, save
from stored_base import fetch, store_base
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE
from tiny_sdxl_base import write_tiny_sdxl_base
from whole_weights import WholeWeights

from booth.contract.attempts import Brief, Manifest
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth_service.diffusion.components import family_of, load_components
from booth_service.diffusion.denoiser import denoiser
from booth_service.errors import BadWeights, StorageError
from booth_service.inference.engine import Engine
from booth_service.inference.tensor_file import tensors_in
from booth_service.inference.weights import WeightsCache
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3


WRITERS = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}


@pytest.fixture(scope="module", params=WRITERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="module")
def models(base: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    """The base and two "trained" models: the base with noise added to every weight, published as training does."""
    scratch = str(tmp_path_factory.mktemp("scratch"))
    files = store_base(object_store, base)
    models = {"base": ModelRef(model_id="base", base_model="tiny", base_files=files)}
    for seed, name in enumerate(("one", "two")):
        components = load_components(base)
        trained = denoiser(components, train_text_encoder=True).trained()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in (parameter for module in trained.values() for parameter in module.parameters()):
                parameter.add_(0.05 * torch.randn_like(parameter))
        brief = Brief(
            job_id=f"job-{name}", tenant_id=f"engine-{base.name}", attempt=1, fence=1, params=PARAMS, photos=[],
            base_model="tiny", base_files=files, recipe=RECIPE, serving_gpus=0, max_ranks=0, first_step_limit_s=60,
        )  # fmt: skip
        weights = WholeWeights({part: module.state_dict() for part, module in trained.items()})
        changed = Export(brief, object_store, scratch)(weights, lambda *_: None)
        key, sha256 = publish_manifest(brief, changed, object_store)
        models[name] = models["base"].model_copy(
            update={"model_id": name, "manifest_key": key, "manifest_sha256": sha256}
        )
    return models


def request(model: ModelRef, *seeds: int, negative_prompt: str = "") -> DrawRequest:
    draws = [Draw(prompt="a photo of sks teapot", negative_prompt=negative_prompt, seed=seed) for seed in seeds]
    return DrawRequest(model=model, draws=draws, guidance_scale=3.0, num_inference_steps=3, width=32, height=32)


def draw(engine: Engine, asked: DrawRequest) -> list[str]:
    """The pictures, PNG in base64."""
    return [picture.png_base64 for picture in engine.submit(asked).future.result().pictures]


def pixels(png_base64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png_base64))), float)


@pytest.fixture
def engine(object_store: ObjectStore, tmp_path: Path) -> Engine:
    return Engine(object_store, "cpu", cache_bytes=2**30, batch_size=4, scratch_dir=str(tmp_path))


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
    half = Engine(engine.store, "cpu", cache_bytes=2**30, batch_size=4, scratch_dir=engine.scratch_dir)
    half.dtype = torch.float16
    for _ in range(2):
        pictures = draw(half, request(models["one"], 1))
        assert np.abs(pixels(pictures[0]) - pixels(exact[0])).mean() < 2


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
    [skeleton] = engine._skeletons.values()
    held = engine.cache.bytes
    assert skeleton.active == models["one"].manifest_sha256
    engine.forget(models["one"].manifest_sha256 or "")
    assert skeleton.active not in {models["one"].manifest_sha256, None}
    assert engine.cache.bytes < held
    assert draw(engine, request(models["base"], 1)) == base
    assert draw(engine, request(models["two"], 1)) == two
    held = engine.cache.bytes
    assert draw(engine, request(models["one"], 1)) == one  # a request that was on its way, and leaves nothing
    assert engine.cache.bytes == held
    engine.forget("never heard of")


def test_only_files_of_the_base_model_lie_on_the_disk(engine: Engine, models: dict[str, ModelRef]) -> None:
    draw(engine, request(models["one"], 1))
    blobs = Path(engine.scratch_dir or "") / "booth-base-models" / "blobs"
    assert {blob.name for blob in blobs.iterdir()} == {file.sha256 for file in models["one"].base_files}


def test_weights_that_arrive_after_they_were_forgotten_are_not_kept() -> None:
    cache = WeightsCache(capacity_bytes=9_000)

    def arrives() -> dict[str, dict[str, torch.Tensor]]:
        cache.forget("a")
        return {"unet": {"w": torch.zeros(1000)}}

    assert cache.get("a", arrives)["unet"]["w"].shape == (1000,)
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.mark.parametrize("pad", range(3))
def test_tensors_in_memory_are_those_that_safetensors_loads(pad: int) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.arange(12).reshape(3, 4).to(kind) for kind in kinds} | {"empty": torch.empty(0, 4)}
    body = save(tensors | {"scalar": torch.tensor(1.5)})
    header = body[8 : 8 + int.from_bytes(body[:8], "little")] + b" " * pad  # a writer that pads as it likes
    body = len(header).to_bytes(8, "little") + header + body[8 + len(header) - pad :]
    found = tensors_in("a file", torch.frombuffer(bytearray(body), dtype=torch.uint8))
    theirs = load(body)
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 20,
        b"\x02" + bytes(7) + b"[]",
        *(
            len(header).to_bytes(8, "little") + header + bytes(8)
            for header in (
                b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
                b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
                b'{"a":{"dtype":"F32","shape":[1]}}',
            )
        ),
    ],
)
def test_what_is_no_safetensors_file_is_named(body: bytes) -> None:
    with pytest.raises(BadWeights, match="unet/x is not a safetensors file"):
        tensors_in("unet/x", torch.frombuffer(bytearray(body or b"x"), dtype=torch.uint8)[: len(body)])


def test_the_cache_drops_the_least_recently_used_by_bytes() -> None:
    def weights(name: str) -> dict[str, dict[str, torch.Tensor]]:
        return {"unet": {name: torch.zeros(1000)}}

    cache = WeightsCache(capacity_bytes=9_000)
    fetched: list[str] = []
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, lambda name=name: fetched.append(name) or weights(name))
    assert fetched == ["a", "b", "c", "b"]
    assert (len(cache), cache.bytes) == (2, 8_000)


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
