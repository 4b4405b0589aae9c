"""Models in the object store that nobody trained: a base with noise on every weight, published as jobs publish."""

import io
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image
from stored_base import store_base
from tiny_job import PARAMS, RECIPE
from whole_weights import WholeWeights

from booth.contract.attempts import Brief, InstancePhoto
from booth.contract.ip_adapter import FOLDER
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth_service import adapter as adapter_job
from booth_service.diffusion.components import load_components
from booth_service.diffusion.denoiser import denoiser
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore

NOISE = 0.05
PHOTO_PARAMS = PARAMS.model_copy(update={"method": "ip_adapter", "token": "", "ip_adapter_scale": 0.6})


def base_ref(store: ObjectStore, base: Path, name: str = "tiny") -> ModelRef:
    """The base model alone, its files in the store."""
    return ModelRef(model_id=name, base_model=name, base_files=store_base(store, base))


def publish_models(
    store: ObjectStore, base: Path, names: Sequence[str], scratch: Path, *, train_text_encoder: bool = True
) -> dict[str, ModelRef]:
    """Published models by name, all different from each other and from the base."""
    plain = base_ref(store, base)
    components = load_components(base)
    trained = denoiser(components, train_text_encoder=train_text_encoder).trained()
    start = {part: {name: t.clone() for name, t in module.state_dict().items()} for part, module in trained.items()}
    return {
        name: _publish(
            store, plain, name, start, [dict(module.named_parameters()) for module in trained.values()], scratch
        )
        for name in names
    }


def _publish(
    store: ObjectStore,
    plain: ModelRef,
    name: str,
    start: dict[str, dict[str, torch.Tensor]],
    parameters: list[dict[str, torch.Tensor]],
    scratch: Path,
) -> ModelRef:
    random = torch.Generator().manual_seed(int.from_bytes(name.encode()[-7:]))
    noisy = {
        part: {
            key: value + NOISE * torch.randn(value.shape, generator=random) if key in its else value
            for key, value in start[part].items()
        }
        for part, its in zip(start, parameters, strict=True)
    }
    brief = _brief(plain, name)
    changed = Export(brief, store, str(scratch))(WholeWeights(noisy), lambda *_: None)
    key, digest = publish_manifest(brief, changed, store)
    return plain.model_copy(update={"model_id": name, "manifest_key": key, "manifest_sha256": digest})


def _brief(plain: ModelRef, name: str) -> Brief:
    return Brief(
        job_id=f"job-{name}", tenant_id=f"published-{plain.base_model}", attempt=1, fence=1, params=PARAMS, photos=[],
        base_model=plain.base_model, base_files=plain.base_files, recipe=RECIPE, serving_gpus=0, max_ranks=0,
        first_step_limit_s=60,
    )  # fmt: skip


def photo_briefs(store: ObjectStore, base: Path, adapter: Path, photos: Mapping[str, Image.Image]) -> dict[str, Brief]:
    """Briefs of jobs of the method "ip_adapter" by name, all that they name stored. `adapter` is as the operator gives
    it."""
    plain = base_ref(store, base)
    files = [file.model_copy(update={"path": f"{FOLDER}/{file.path}"}) for file in store_base(store, adapter)]
    briefs = {}
    for name, photo in photos.items():
        png = io.BytesIO()
        photo.save(png, "PNG")
        body = png.getvalue()
        stored = InstancePhoto(path="00.png", key=f"photos/{name}", bytes=len(body), sha256=sha256(body).hexdigest())
        store.put(stored.key, body)
        of_photo = {"params": PHOTO_PARAMS, "photos": [stored], "adapter_files": files}
        briefs[name] = _brief(plain, name).model_copy(update=of_photo)
    return briefs


def publish_photos(
    store: ObjectStore, base: Path, adapter: Path, photos: Mapping[str, Image.Image], scratch: Path
) -> dict[str, ModelRef]:
    """Models of one photo each by name, published as such jobs do."""
    published = {}
    for name, brief in photo_briefs(store, base, adapter, photos).items():
        embeds = adapter_job.read_photo(adapter_job.work_of(brief, store, str(scratch), use_gpu=False))
        key, digest = publish_manifest(brief, [embeds], store)
        manifest = {"manifest_key": key, "manifest_sha256": digest}
        published[name] = base_ref(store, base).model_copy(update={"model_id": name, **manifest})
    return published


def request(
    model: ModelRef,
    *seeds: int,
    prompt: str = "a photo of sks teapot",
    side_px: int = 32,
    steps: int = 3,
    **more: object,
) -> DrawRequest:
    """A request for one picture of each seed."""
    negative = str(more.pop("negative_prompt", ""))
    draws = [Draw(prompt=prompt, negative_prompt=negative, seed=seed) for seed in seeds]
    asked = DrawRequest(
        model=model, draws=draws, guidance_scale=3.0, num_inference_steps=steps, width=side_px, height=side_px
    )
    return asked.model_copy(update=more)
