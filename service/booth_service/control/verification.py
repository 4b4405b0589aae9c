"""A published manifest, checked before its model can be seen: identity, files, tensors, finite values, change.

Reads headers and samples only, so that gigabytes are checked in seconds; whoever loads the model checks every hash. Of
a file that is stored as a difference these are whole chunks, at most as many as there are samples.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydantic import ValidationError

from booth.contract.attempts import Manifest, Published, StoredFile
from booth_service.control.records import Job
from booth_service.control.safetensors_header import Read, Tensor, read_header, read_sample
from booth_service.errors import BadWeights, DamagedObject, ObjectMissing
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.stored_file import Ranges, refuse_contradiction

FINITE_SAMPLES = 24
THREADS = 8


@dataclass(frozen=True)
class Claim:
    """What the control plane knows of an attempt, against which its manifest is held.

    `references` are what its files may be stored as differences to.
    """

    job: Job
    attempt: int
    base_files: list[StoredFile]
    references: list[StoredFile] = field(default_factory=list)


def verify(store: ObjectStore, claim: Claim, published: Published) -> Manifest:
    """The manifest, where everything it says is so. Raises BadWeights, or StorageError where the store is away."""
    manifest = read_manifest(store, claim, published)
    base = {file.path: file for file in claim.base_files}
    _check_files(manifest, base)
    for file in manifest.changed:
        check_stored(store, claim, file)
        try:
            _check_weights(store, file, base[file.path])
        except DamagedObject as damaged:
            raise BadWeights(damaged.detail) from None
    return manifest


def read_manifest(store: ObjectStore, claim: Claim, published: Published) -> Manifest:
    """The attempt's own manifest, as it was reported. Raises BadWeights."""
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


def check_stored(store: ObjectStore, claim: Claim, file: StoredFile) -> None:
    """Raise BadWeights unless the changed file lies whole in the attempt's own folder."""
    key = keys.model_file(claim.job.tenant_id, claim.job.id, claim.attempt, file.path)
    if file.key != key:
        raise BadWeights(f"{file.path} lies at {file.key}, outside the attempt's own folder")
    try:
        refuse_contradiction(file)
    except DamagedObject as contradiction:
        raise BadWeights(contradiction.detail) from None
    if file.delta is None:
        return _check_size(store, file.path, key, file.bytes)
    if file.delta.reference not in claim.references:
        raise BadWeights(f"{file.path} is a difference to {file.delta.reference.key}, no reference of its base model")
    with ThreadPoolExecutor(THREADS) as pool:
        chunk_keys = [keys.model_chunk(key, part) for part in range(len(file.delta.chunk_bytes))]
        list(pool.map(partial(_check_size, store, file.path), chunk_keys, file.delta.chunk_bytes))


def _check_size(store: ObjectStore, path: str, key: str, expected: int) -> None:
    size = store.size(key)
    if size is None:
        raise BadWeights(f"{path} is not in the object store ({key})")
    if size != expected:
        raise BadWeights(f"{path} has {size} bytes, its manifest says {expected} ({key})")


def _check_weights(store: ObjectStore, file: StoredFile, base: StoredFile) -> None:
    ours, theirs = Ranges(store, file), Ranges(store, base)
    new, old = read_header(ours.read, file.key, file.bytes), read_header(theirs.read, base.key, base.bytes)
    if missing := sorted(old.keys() - new.keys()):
        raise BadWeights(f"{file.path} lacks {len(missing)} tensors of the base model, such as {missing[0]}")
    if extra := sorted(new.keys() - old.keys()):
        raise BadWeights(f"{file.path} has {len(extra)} tensors that the base model lacks, such as {extra[0]}")
    for name in new:
        if new[name].shape != old[name].shape:
            raise BadWeights(f"{file.path}: {name} has shape {new[name].shape}, the base {old[name].shape}")
    floats = [name for name in sorted(new) if new[name].is_float and new[name].shape != [0]]
    sampled = floats[:: max(1, len(floats) // FINITE_SAMPLES)]
    for name in sorted(sampled, key=lambda name: new[name].start):  # so that each chunk is fetched once
        if not np.isfinite(read_sample(ours.read, new[name])).all():
            raise BadWeights(f"{file.path}: {name} holds values that are not finite")
    largest_first = sorted(floats, key=lambda name: -new[name].count)
    changes = (_differs((ours.read, new[name]), (theirs.read, old[name])) for name in largest_first)
    if file.sha256 == base.sha256 or not any(changes):
        raise BadWeights(f"{file.path} has the base model's weights: training changed nothing")


def _differs(new: tuple[Read, Tensor], old: tuple[Read, Tensor]) -> bool:
    """True where the samples differ beyond what the coarser of the two number formats rounds away."""
    coarsest = min((new[1].dtype, old[1].dtype), key=lambda dtype: {"BF16": 0, "F16": 1}.get(dtype, 2))
    one, other = (_rounded(read_sample(read, tensor), coarsest) for read, tensor in (new, old))
    return not np.array_equal(one, other)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        return values.astype(np.float16)
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) + 0x8000) >> 16
    return values
