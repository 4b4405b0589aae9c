"""A published manifest, checked before its model can be seen: identity, files, tensors, finite values, change.

Reads headers and samples only, so that gigabytes are checked in seconds; whoever loads the model checks every hash.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from booth.contract.attempts import Manifest, Published, StoredFile
from booth.contract.digests import part_ranges, sha256_of_parts
from booth_service.control.records import Job
from booth_service.control.safetensors_header import Tensor, read_header, read_sample
from booth_service.errors import BadWeights, ObjectMissing
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

FINITE_SAMPLES = 24


@dataclass(frozen=True)
class Claim:
    """What the control plane knows of an attempt, against which its manifest is held."""

    job: Job
    attempt: int
    base_files: list[StoredFile]


def verify(store: ObjectStore, claim: Claim, published: Published) -> Manifest:
    """The manifest, where everything it says is so. Raises BadWeights, or StorageError where the store is away."""
    manifest = _read_manifest(store, claim, published)
    base = {file.path: file for file in claim.base_files}
    _check_files(manifest, base)
    for file in manifest.changed:
        _check_stored(store, claim, file)
        _check_weights(store, file, base[file.path])
    return manifest


def _read_manifest(store: ObjectStore, claim: Claim, published: Published) -> Manifest:
    key = keys.model_manifest(claim.job.tenant_id, claim.job.id, claim.attempt)
    if published.manifest_key != key:
        raise BadWeights(f"the manifest is {published.manifest_key}, not this attempt's own {key}")
    try:
        body = store.get(key)
    except ObjectMissing:
        raise BadWeights(f"{key} is not in the object store") from None
    if hashlib.sha256(body).hexdigest() != published.manifest_sha256:
        raise BadWeights(f"{key} does not have the SHA-256 {published.manifest_sha256} that was reported")
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise BadWeights(f"{key} is not a manifest: {error}") from None
    said = (manifest.job_id, manifest.attempt, manifest.fence, manifest.params.model_dump())
    if said != (claim.job.id, claim.attempt, published.fence, claim.job.params):
        raise BadWeights(f"{key} is of another job, attempt or fence, or of other params")
    return manifest


def _check_files(manifest: Manifest, base: dict[str, StoredFile]) -> None:
    """Changed and unchanged files make up the base model's folder, each once."""
    paths = sorted(file.path for file in manifest.files)
    if paths != sorted(base):
        odd = sorted(set(paths) ^ set(base)) or [path for path in set(paths) if paths.count(path) > 1]
        raise BadWeights(f"the model's files are not those of its base model: {', '.join(odd)}")
    if foreign := [file.path for file in manifest.unchanged if file != base[file.path]]:
        raise BadWeights(f"files said to be unchanged are not the base model's: {', '.join(foreign)}")
    if not manifest.changed:
        raise BadWeights("the model changes no file of its base model")
    if odd := [file.path for file in manifest.changed if not file.path.endswith(".safetensors")]:
        raise BadWeights(f"only weights may change, not {', '.join(odd)}")


def _check_stored(store: ObjectStore, claim: Claim, file: StoredFile) -> None:
    key = keys.model_file(claim.job.tenant_id, claim.job.id, claim.attempt, file.path)
    if file.key != key:
        raise BadWeights(f"{file.path} lies at {file.key}, outside the attempt's own folder")
    size = store.size(key)
    if size is None:
        raise BadWeights(f"{file.path} is not in the object store")
    if size != file.bytes:
        raise BadWeights(f"{file.path} has {size} bytes, its manifest says {file.bytes}")
    if file.part_sha256 and not _are_parts_of(file):
        raise BadWeights(
            f"{file.path}: its {len(file.part_sha256)} parts' digests are not those of its SHA-256 and size"
        )


def _are_parts_of(file: StoredFile) -> bool:
    """Whether the parts' digests make up the file's, and are as many as its size has parts."""
    if file.part_bytes < 1 or len(part_ranges(file.bytes, file.part_bytes)) != len(file.part_sha256):
        return False
    return sha256_of_parts(file.part_sha256) == file.sha256


def _check_weights(store: ObjectStore, file: StoredFile, base: StoredFile) -> None:
    new, old = read_header(store, file.key, file.bytes), read_header(store, base.key, base.bytes)
    if missing := sorted(old.keys() - new.keys()):
        raise BadWeights(f"{file.path} lacks {len(missing)} tensors of the base model, such as {missing[0]}")
    if extra := sorted(new.keys() - old.keys()):
        raise BadWeights(f"{file.path} has {len(extra)} tensors that the base model lacks, such as {extra[0]}")
    for name in new:
        if new[name].shape != old[name].shape:
            raise BadWeights(f"{file.path}: {name} has shape {new[name].shape}, the base {old[name].shape}")
    floats = [name for name in sorted(new) if new[name].is_float and new[name].shape != [0]]
    for name in floats[:: max(1, len(floats) // FINITE_SAMPLES)]:
        if not np.isfinite(read_sample(store, file.key, new[name])).all():
            raise BadWeights(f"{file.path}: {name} holds values that are not finite")
    largest_first = sorted(floats, key=lambda name: -new[name].count)
    changes = (_differs(store, (file.key, new[name]), (base.key, old[name])) for name in largest_first)
    if file.sha256 == base.sha256 or not any(changes):
        raise BadWeights(f"{file.path} has the base model's weights: training changed nothing")


def _differs(store: ObjectStore, new: tuple[str, Tensor], old: tuple[str, Tensor]) -> bool:
    """True where the samples differ beyond what the coarser of the two number formats rounds away."""
    coarsest = min((new[1].dtype, old[1].dtype), key=lambda dtype: {"BF16": 0, "F16": 1}.get(dtype, 2))
    one, other = (_rounded(read_sample(store, key, tensor), coarsest) for key, tensor in (new, old))
    return not np.array_equal(one, other)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        return values.astype(np.float16)
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) + 0x8000) >> 16
    return values
