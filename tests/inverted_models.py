"""Textual inversions that nobody trained: rows with noise on them, published as jobs publish."""

from pathlib import Path

import torch
from stored_base import store_base, store_references
from tiny_job import PARAMS, RECIPE
from whole_weights import WholeWeights

from booth.contract.attempts import Brief, Manifest, Published
from booth.contract.serving import ModelRef
from booth_service.control.records import Job
from booth_service.control.verification import Claim, verify
from booth_service.diffusion.components import load_components
from booth_service.diffusion.placeholder import inverted
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore

TENANT = "inverted"
NOISE = 0.3
PARAMS_OF_ROW = PARAMS.model_copy(
    update={
        "method": "textual_inversion",
        "instance_prompt": "a photo of sks",
        "train_text_encoder": False,
        "num_class_images": 0,
        "prior_loss_weight": 0.0,
    }
)


def brief_of(store: ObjectStore, base: Path, name: str, *, with_references: bool = True) -> Brief:
    """An attempt whose base model is in the store."""
    files = store_base(store, base)
    return Brief(
        job_id=f"job-{name}", tenant_id=TENANT, attempt=1, fence=1, params=PARAMS_OF_ROW, photos=[], base_model=name,
        base_files=files, recipe=RECIPE, serving_gpus=0, max_ranks=0, first_step_limit_s=60,
        references=store_references(store, base, files) if with_references else [],
    )  # fmt: skip


def rows(base: Path, noise: float = NOISE) -> WholeWeights:
    """The rows of "sks": those of "teapot", with noise."""
    module = inverted(load_components(base), "sks", "teapot")
    random = torch.Generator().manual_seed(1)
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, row in trained.items():
        component, own = name.split(".", 1)
        parts.setdefault(component, {})[own] = row + noise * torch.randn(row.shape, generator=random)
    return WholeWeights(parts)


def publish(store: ObjectStore, brief: Brief, weights: WholeWeights, scratch: Path) -> Published:
    """Files and manifest are in the store."""
    files = Export(brief, store, str(scratch))(weights, lambda *_: None)
    key, sha256 = publish_manifest(brief, files, store)
    return Published(fence=1, manifest_key=key, manifest_sha256=sha256)


def verified(store: ObjectStore, brief: Brief, published: Published) -> Manifest:
    """What the control plane makes of it. Raises BadWeights."""
    job = Job(id=brief.job_id, tenant_id=TENANT, params=brief.params.model_dump())
    return verify(store, Claim(job, 1, brief.base_files, brief.references), published)


def model_ref(brief: Brief, published: Published) -> ModelRef:
    """The model as Serve is told of it."""
    return ModelRef(
        model_id=brief.job_id,
        base_model=brief.base_model,
        base_files=brief.base_files,
        manifest_key=published.manifest_key,
        manifest_sha256=published.manifest_sha256,
    )
