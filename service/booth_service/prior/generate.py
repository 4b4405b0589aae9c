"""Making the missing class images: a Ray Data actor pool over whole blocks, each actor storing what it draws."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import torch

from booth.contract.attempts import StoredFile
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.sampling import draw
from booth_service.prior.class_set import ClassItem, ClassManifest, ClassSetSpec, missing_blocks
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore


@dataclass(frozen=True)
class ClassImages:
    """A complete set, and how much of it had to be made."""

    keys: list[str]
    reused: int
    made: int


def ensure_class_images(
    spec: ClassSetSpec,
    count: int,
    *,
    tenant_id: str,
    base_files: list[StoredFile],
    store: ObjectStore,
    scratch_dir: str | None,
    use_gpu: bool,
    on_made: Callable[[int, int], None],
) -> ClassImages:
    """The first `count` pictures of the set, making only the blocks that are not there yet.

    `on_made(done, total)` is called after each block, with pictures counted. Raises StorageError or what drawing
    raised; what was stored until then is reused by the next call.
    """
    manifest_key = keys.class_manifest(tenant_id, spec.address, count)
    if store.size(manifest_key) is not None:
        manifest = ClassManifest.model_validate_json(store.get(manifest_key))
        return ClassImages([item.key for item in manifest.items], reused=count, made=0)
    blocks = missing_blocks(store, tenant_id, spec, count)
    total = len(blocks) * spec.block_size
    done = 0
    drawn: dict[int, str] = {}
    for row in draw_blocks(spec, blocks, tenant_id, base_files, store, scratch_dir, use_gpu):
        drawn.update(enumerate(row["sha256"].split(), start=int(row["first"])))
        done += spec.block_size
        on_made(min(done, count), min(total, count))
    items = [item_of(store, tenant_id, spec, index, drawn.get(index)) for index in range(count)]
    store.put_once(manifest_key, ClassManifest(spec=spec, items=items).model_dump_json().encode())
    made = len({index for block in blocks for index in block if index < count})
    return ClassImages([item.key for item in items], reused=count - made, made=made)


def item_of(store: ObjectStore, tenant_id: str, spec: ClassSetSpec, index: int, sha256: str | None) -> ClassItem:
    """The record of a picture; one that was not drawn just now is read for its hash, or raises ObjectMissing."""
    key = keys.class_item(tenant_id, spec.address, index)
    return ClassItem(index=index, key=key, sha256=sha256 or hashlib.sha256(store.get(key)).hexdigest())


def draw_blocks(
    spec: ClassSetSpec,
    blocks: list[list[int]],
    tenant_id: str,
    base_files: list[StoredFile],
    store: ObjectStore,
    scratch_dir: str | None,
    use_gpu: bool,
) -> Any:
    """Digest rows of drawn blocks, as they are finished."""
    if not blocks:
        return []
    resources = ray.cluster_resources()
    actors = min(len(blocks), max(1, int(resources.get("GPU" if use_gpu else "CPU", 1))))
    ray.data.DataContext.get_current().enable_progress_bars = False
    arguments = (spec.model_dump(), tenant_id, [file.model_dump() for file in base_files], store, scratch_dir, use_gpu)
    return (
        ray.data.from_items([{"indices": block} for block in blocks], override_num_blocks=len(blocks))
        .map_batches(
            BlockPainter,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **({"num_gpus": 1} if use_gpu else {"num_cpus": 0.9}),
        )
        .iter_rows()
    )


class BlockPainter:
    """An actor that draws whole blocks and stores the pictures; only digests travel through Ray."""

    def __init__(
        self,
        spec: dict[str, Any],
        tenant_id: str,
        base_files: list[dict[str, Any]],
        store: ObjectStore,
        scratch_dir: str | None,
        use_gpu: bool,
    ) -> None:
        torch.set_num_threads(1)
        self.spec, self.tenant_id, self.store = ClassSetSpec(**spec), tenant_id, store
        files = [StoredFile(**file) for file in base_files]
        dtype = getattr(torch, self.spec.dtype)
        self.pipeline = load_pipeline(materialize(store, files, scratch_dir), dtype).to("cuda" if use_gpu else "cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        spec = self.spec
        indices = [int(index) for index in batch["indices"][0]]
        images = draw(
            self.pipeline,
            [spec.class_prompt] * len(indices),
            [spec.negative_prompt] * len(indices),
            [spec.item_seed(index) for index in indices],
            guidance_scale=spec.guidance_scale,
            num_inference_steps=spec.num_inference_steps,
            resolution=spec.resolution,
            batch_size=spec.block_size,
        )
        digests = []
        for index, image in zip(indices, images, strict=True):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            self.store.put(keys.class_item(self.tenant_id, spec.address, index), buffer.getvalue(), "image/png")
            digests.append(hashlib.sha256(buffer.getvalue()).hexdigest())
        return {"first": [indices[0]], "sha256": [" ".join(digests)]}
