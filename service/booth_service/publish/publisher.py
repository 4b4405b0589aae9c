"""Files of a trained model into the object store, and the manifest, once, after all of them."""

import hashlib
from dataclasses import dataclass

import torch

from booth.contract.attempts import LEARNED_EMBEDDINGS, Brief, Manifest, StoredFile, TrainedRow
from booth.contract.jobs import ExportDtype
from booth_service.publish.embeddings import learned_embeds
from booth_service.publish.export import Pieces, TrainedWeights, pieces_of
from booth_service.publish.gang import Gang
from booth_service.publish.references import Reference, references_of, worthwhile
from booth_service.publish.upload import Say, upload_files
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

DTYPES: dict[ExportDtype, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Export:
    """Stores trained weights under the attempt's prefix, floats in `dtype`. Picklable: all ranks call it at the end.

    Files are stored as differences to the brief's references where that at least halves their bytes. Where rows of
    token embeddings alone were trained these are also stored as a small file of their own, the last of the records.
    """

    brief: Brief
    store: ObjectStore
    scratch_dir: str | None
    dtype: torch.dtype = torch.float16

    def __call__(self, weights: TrainedWeights, say: Say) -> list[StoredFile]:
        """The changed files' records, on every rank. Raises the same BadWeights or StorageError on all of them."""
        brief, gang = self.brief, Gang(weights.device)

        def prepare() -> tuple[list[Pieces], list[Reference | None]]:
            folder = materialize(self.store, brief.base_files, self.scratch_dir)
            files = pieces_of(weights, folder, self.dtype)
            return files, references_of(files, brief.references, self.store, self.scratch_dir)

        files, references = gang.all_or_none(prepare)
        paths = [file.layout.path.as_posix() for file in files]
        file_keys = [keys.model_file(brief.tenant_id, brief.job_id, brief.attempt, path) for path in paths]
        stored = upload_files(files, file_keys, self.store, gang, say, worthwhile(files, references, gang))
        embeddings = learned_embeds(weights, brief.params.token, gang)
        changed = [_with_row(record, file) for record, file in zip(stored, files, strict=True)]
        return changed if embeddings is None else [*changed, self._artefact(LEARNED_EMBEDDINGS, embeddings, gang)]

    def _artefact(self, path: str, body: bytes, gang: Gang) -> StoredFile:
        """A small file that all ranks hold is stored by the first of them."""
        key = keys.model_file(self.brief.tenant_id, self.brief.job_id, self.brief.attempt, path)
        gang.all_or_none(lambda: self.store.put(key, body) if gang.rank == 0 else None)
        return StoredFile(path=path, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _with_row(record: StoredFile, file: Pieces) -> StoredFile:
    rows = [TrainedRow(tensor=slot.name, row=slot.row) for slot in file.layout.slots if slot.row is not None]
    return record.model_copy(update={"row": rows[0]}) if rows else record


def publish_manifest(brief: Brief, changed: list[StoredFile], store: ObjectStore) -> tuple[str, str]:
    """Write the manifest of a complete model; returns its key and SHA-256.

    Unchanged parts are references to the base model's files, and to its adapter's where the job uses one; what has no
    place among them lies beside. A manifest that is already there is kept and returned: it can only be this attempt's
    own.
    """
    paths = {file.path for file in changed}
    manifest = Manifest(
        job_id=brief.job_id,
        attempt=brief.attempt,
        fence=brief.fence,
        base_model=brief.base_model,
        changed=[file for file in changed if file.path != LEARNED_EMBEDDINGS],
        unchanged=[file for file in [*brief.base_files, *brief.adapter_files] if file.path not in paths],
        artefacts=[file for file in changed if file.path == LEARNED_EMBEDDINGS],
        params=brief.params,
    )
    key = keys.model_manifest(brief.tenant_id, brief.job_id, brief.attempt)
    body = manifest.model_dump_json(indent=1).encode()
    if not store.put_once(key, body):
        body = store.get(key)
    return key, hashlib.sha256(body).hexdigest()
