"""Files of a trained model into the object store, and the manifest, once, after all of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from booth.contract.attempts import Brief, Manifest, StoredFile
from booth_service.diffusion.components import weight_files
from booth_service.publish.export import export_file
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore


@dataclass(frozen=True)
class Export:
    """Stores trained weights under the attempt's prefix. Picklable: rank 0 calls it at the end of training."""

    brief: Brief
    store: ObjectStore
    scratch_dir: str | None
    dtype: torch.dtype = torch.float16

    def __call__(self, weights: Mapping[str, Mapping[str, Tensor]]) -> list[StoredFile]:
        """Component folder -> name in the loaded module -> trained tensor, whole; what is absent is the base's."""
        base_folder = materialize(self.store, self.brief.base_files, self.scratch_dir)
        return [
            self._upload(path, export_file(tensors, base_folder, path, self.dtype))
            for component, tensors in weights.items()
            for path in weight_files(base_folder, component)
        ]

    def _upload(self, path: Path, body: bytes) -> StoredFile:
        brief = self.brief
        key = keys.model_file(brief.tenant_id, brief.job_id, brief.attempt, path.as_posix())
        self.store.put(key, body)
        return StoredFile(path=path.as_posix(), key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def publish_manifest(brief: Brief, changed: list[StoredFile], store: ObjectStore) -> tuple[str, str]:
    """Write the manifest of a complete model; returns its key and SHA-256.

    Unchanged parts are references to the base model's files. A manifest that is already there is kept and returned:
    it can only be this attempt's own.
    """
    paths = {file.path for file in changed}
    manifest = Manifest(
        job_id=brief.job_id,
        attempt=brief.attempt,
        fence=brief.fence,
        base_model=brief.base_model,
        changed=changed,
        unchanged=[file for file in brief.base_files if file.path not in paths],
        params=brief.params,
    )
    key = keys.model_manifest(brief.tenant_id, brief.job_id, brief.attempt)
    body = manifest.model_dump_json(indent=1).encode()
    if not store.put_once(key, body):
        body = store.get(key)
    return key, hashlib.sha256(body).hexdigest()
