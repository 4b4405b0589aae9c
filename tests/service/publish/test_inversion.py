"""A textual inversion as a published model: the base but for one row, and a small file that diffusers takes."""

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from inverted_models import brief_of, model_ref, publish, rows, verified
from PIL import Image
from published_models import request as asked
from safetensors.torch import load, save
from stored_base import whole
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.attempts import LEARNED_EMBEDDINGS, Manifest, Published, StoredFile, TrainedRow
from booth_service.errors import BadWeights
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

WRITERS = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}
ENCODERS = {"sd": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}
KEYS = {"sd": {"<sks>": "text_encoder"}, "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}}


class Inversion:
    """A published one, with all that it was made of."""

    def __init__(self, family: str, store: ObjectStore, folder: Path) -> None:
        self.family, self.store, self.folder = family, store, folder
        self.base = WRITERS[family](folder / family)
        for encoder in ENCODERS[family]:  # as published bases are: then the row alone is rounded
            path = self.base / encoder / "model.safetensors"
            half = {name: tensor.half() for name, tensor in load(path.read_bytes()).items()}
            path.write_bytes(save(half, metadata={"format": "pt"}))
        self.brief = brief_of(store, self.base, family)
        self.weights = rows(self.base)
        self.published = publish(store, self.brief, self.weights, folder / "scratch")

    @property
    def manifest(self) -> Manifest:
        return verified(self.store, self.brief, self.published)


@pytest.fixture(scope="module")
def sd(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Inversion:
    return Inversion("sd", object_store, tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sdxl(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Inversion:
    return Inversion("sdxl", object_store, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(params=WRITERS)
def inversion(request: pytest.FixtureRequest, sd: Inversion, sdxl: Inversion) -> Inversion:
    return sd if request.param == "sd" else sdxl


def test_the_text_encoders_alone_change_and_take_next_to_nothing(inversion: Inversion) -> None:
    manifest, encoders = inversion.manifest, ENCODERS[inversion.family]
    assert [file.path for file in manifest.changed] == [f"{encoder}/model.safetensors" for encoder in encoders]
    for file, encoder in zip(manifest.changed, encoders, strict=True):
        assert file.delta is not None
        assert sum(file.delta.chunk_bytes) < file.bytes / 8
        before = load((inversion.base / file.path).read_bytes())
        for name, tensor in load(whole(inversion.store, file)).items():
            other = (tensor.view(torch.int16) != before[name].view(torch.int16)).nonzero()
            if file.row is not None and name == file.row.tensor:
                assert set(other[:, 0].tolist()) == {file.row.row}
                [row] = [row for key, row in inversion.weights.tensors.items() if key.startswith(f"{encoder}.")]
                assert torch.equal(tensor[file.row.row], row[0].half())
            else:
                assert len(other) == 0, name


def test_the_small_file_holds_the_rows_in_full_precision(inversion: Inversion) -> None:
    [file] = inversion.manifest.artefacts
    assert (file.path, file.bytes < 1000) == (LEARNED_EMBEDDINGS, True)
    learned = load(inversion.store.get(file.key, file.sha256))
    encoders = KEYS[inversion.family]
    assert learned.keys() == encoders.keys()
    for key, row in learned.items():
        [trained] = [row for name, row in inversion.weights.tensors.items() if name.startswith(f"{encoders[key]}.")]
        assert row.dtype == torch.float32
        assert torch.equal(row, trained)


def test_diffusers_draws_with_the_small_file_what_the_endpoint_draws(inversion: Inversion, tmp_path: Path) -> None:
    served = drawn_by_the_endpoint(inversion, "a photo of sks on the beach")
    pipeline = DiffusionPipeline.from_pretrained(inversion.base, dtype=torch.float32, **_without(inversion.family))
    untouched = drawn_by(pipeline, "a photo of sks on the beach")
    [file] = inversion.manifest.artefacts
    (tmp_path / LEARNED_EMBEDDINGS).write_bytes(inversion.store.get(file.key, file.sha256))
    if inversion.family == "sd":
        pipeline.load_textual_inversion(tmp_path / LEARNED_EMBEDDINGS)
    else:  # as diffusers' guide loads the embeddings of two encoders
        learned = load((tmp_path / LEARNED_EMBEDDINGS).read_bytes())
        for key, at in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = (getattr(pipeline, part + at) for part in ("text_encoder", "tokenizer"))
            pipeline.load_textual_inversion(learned[key], token="<sks>", text_encoder=encoder, tokenizer=tokenizer)
    loaded = drawn_by(pipeline, "a photo of <sks> on the beach")
    assert np.abs(served - loaded).max() <= 2, "but for the rounding of the row in the published file"
    assert np.abs(served - untouched).max() > 10


def drawn_by_the_endpoint(inversion: Inversion, prompt: str) -> np.ndarray:
    limits = EngineLimits(BatchLimits(1, 2**30, False))
    engine = Engine(inversion.store, "cpu", limits, str(inversion.folder / "scratch"))
    try:
        model = model_ref(inversion.brief, inversion.published)
        answer = engine.submit(asked(model, 5, prompt=prompt)).future.result(60)
    finally:
        engine.close()
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.pictures[0].png_base64)))).astype(int)


def drawn_by(pipeline: DiffusionPipeline, prompt: str) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        prompt, generator=torch.Generator().manual_seed(5), guidance_scale=3.0,
        num_inference_steps=3, width=32, height=32,
    ).images[0]  # fmt: skip
    return np.asarray(picture).astype(int)


def _without(family: str) -> dict[str, object]:
    return {"safety_checker": None} if family == "sd" else {"add_watermarker": False}


def _edited(manifest: Manifest, number: int = 0, **update: object) -> Manifest:
    changed = list(manifest.changed)
    changed[number] = changed[number].model_copy(update=update)
    return manifest.model_copy(update={"changed": changed})


Edit = Callable[[Manifest], Manifest]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: _edited(m, row=None), "text_encoder/model.safetensors: more than one row was trained"),
        (lambda m: _edited(m, row=TrainedRow(tensor=m.changed[0].row.tensor, row=3)), "has the base model's row 3"),
        (lambda m: _edited(m, row=TrainedRow(tensor=m.changed[0].row.tensor, row=10**6)), "has no row 1000000 of"),
        (lambda m: _edited(m, row=TrainedRow(tensor="other", row=0)), "has no row 0 of other"),
        (lambda m: _edited(m, row=TrainedRow(tensor=_other(m), row=0)), "has the base model's row 0"),
        (lambda m: m.model_copy(update={"artefacts": []}), "beside the model's folder lie no files"),
        (lambda m: m.model_copy(update={"artefacts": m.artefacts * 2}), "beside the model's folder lie"),
        (
            lambda m: m.model_copy(update={"artefacts": [m.artefacts[0].model_copy(update={"key": "elsewhere"})]}),
            "outside the attempt's own folder",
        ),
        (
            lambda m: m.model_copy(update={"artefacts": [m.artefacts[0].model_copy(update={"bytes": 7})]}),
            "bytes, its manifest says 7",
        ),
    ],
)
def test_a_manifest_that_lies_about_rows_is_refused(sd: Inversion, edit: Edit, said: str) -> None:
    with pytest.raises(BadWeights, match=said):
        _reverified(sd, edit(sd.manifest))


def test_more_than_a_row_is_refused(sd: Inversion) -> None:
    """A file in which another tensor moved too, with a manifest that says one row."""
    manifest, store = sd.manifest, sd.store
    [file] = manifest.changed
    tensors = load(whole(store, file))
    name = next(name for name in tensors if name.endswith("layer_norm1.weight"))
    tensors[name] = tensors[name] * 1.1
    body = save(tensors, metadata={"format": "pt"})
    store.put(file.key, body)
    lying = StoredFile(
        path=file.path, key=file.key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest(), row=file.row
    )
    with pytest.raises(BadWeights, match=r"is not the base model's, and one row alone was to be trained"):
        _reverified(sd, manifest.model_copy(update={"changed": [lying]}))


def test_rows_that_did_not_move_are_refused(object_store: ObjectStore, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "still")
    brief = brief_of(object_store, base, "still", with_references=False)
    still = rows(base, noise=0.0)
    [(name, row)] = still.tensors.items()
    whole_name, number = name.rsplit(".", 1)[0].split(".", 1)[1] + ".weight", int(name.rsplit("_", 1)[1])
    row.copy_(load((base / "text_encoder" / "model.safetensors").read_bytes())[whole_name][number][None])
    with pytest.raises(BadWeights, match=f"has the base model's row {number}: training changed nothing"):
        verified(object_store, brief, publish(object_store, brief, still, tmp_path / "scratch"))


def _other(manifest: Manifest) -> str:
    trained = manifest.changed[0].row
    assert trained is not None
    return trained.tensor.replace("token_embedding", "position_embedding")


def _reverified(inversion: Inversion, manifest: Manifest) -> Manifest:
    store, brief = inversion.store, inversion.brief
    key = f"tenants/{brief.tenant_id}/jobs/{brief.job_id}/a1/model/manifest.json"
    body = manifest.model_dump_json().encode()
    before = store.get(key)
    store.put(key, body)
    try:
        sha256 = hashlib.sha256(body).hexdigest()
        return verified(store, brief, Published(fence=1, manifest_key=key, manifest_sha256=sha256))
    finally:
        store.put(key, before)
