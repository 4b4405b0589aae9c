"""A published manifest, checked before its model can be seen: identity, files, tensors, finite values, change.

Reads headers and samples only, so that gigabytes are checked in seconds; whoever loads the model checks every hash. Of
a file that is stored as a difference these are whole chunks, at most as many as there are samples.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydantic import ValidationError

from booth.contract.attempts import LEARNED_EMBEDDINGS, Manifest, Published, StoredFile, TrainedRow
from booth_service.control.records import Job
from booth_service.control.safetensors_header import Read, Tensor, read_header, read_sample, row
from booth_service.errors import BadWeights, DamagedObject, ObjectMissing
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.stored_file import Ranges, refuse_contradiction

FINITE_SAMPLES = 24
_STEPS = {"BF16": 2**-7, "F16": 2**-10}  # from one number to the next, over the number
_LEAST_STEP = 2.0**-24  # between the smallest numbers of float16
Tensors = tuple[Read, Mapping[str, Tensor]]  # how a file is read, and what it holds
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
    _check_method(manifest)
    try:
        for file in manifest.changed:
            check_stored(store, claim, file)
            _check_weights(store, file, base[file.path])
        for file in manifest.artefacts:
            check_stored(store, claim, file)
            _check_finite(file, Ranges(store, file).read, read_header(Ranges(store, file).read, file.key, file.bytes))
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


def _check_method(manifest: Manifest) -> None:
    """Rows alone are trained where the job's method says so, and nowhere else; they are beside the folder too."""
    is_inverted = manifest.params.method == "textual_inversion"
    if odd := [file.path for file in manifest.changed if (file.row is not None) != is_inverted]:
        raise BadWeights(f"{', '.join(odd)}: {'more than' if is_inverted else 'no more than'} one row was trained")
    beside = [file.path for file in manifest.artefacts]
    if beside != ([LEARNED_EMBEDDINGS] if is_inverted else []):
        raise BadWeights(f"beside the model's folder lie {', '.join(beside) or 'no files'}")


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
    floats = _check_finite(file, ours.read, new)
    if file.row is not None:
        return _check_row(file, file.row, (ours.read, new), (theirs.read, old))
    largest_first = sorted(floats, key=lambda name: -new[name].count)
    changes = (_differs((ours.read, new[name]), (theirs.read, old[name])) for name in largest_first)
    if file.sha256 == base.sha256 or not any(changes):
        raise BadWeights(f"{file.path} has the base model's weights: training changed nothing")


def _check_finite(file: StoredFile, read: Read, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the floating-point tensors, of which samples are finite."""
    floats = [name for name in sorted(tensors) if tensors[name].is_float and tensors[name].shape != [0]]
    sampled = floats[:: max(1, len(floats) // FINITE_SAMPLES)]
    for name in sorted(sampled, key=lambda name: tensors[name].start):  # so that each chunk is fetched once
        if not np.isfinite(read_sample(read, tensors[name])).all():
            raise BadWeights(f"{file.path}: {name} holds values that are not finite")
    return floats


def _check_row(file: StoredFile, trained: TrainedRow, ours: Tensors, theirs: Tensors) -> None:
    """The row is another one than the base model's, finite, and samples of all else are the base model's."""
    (read, new), (read_base, old) = ours, theirs
    if trained.tensor not in new or not 0 <= trained.row < (new[trained.tensor].shape or [0])[0]:
        raise BadWeights(f"{file.path} has no row {trained.row} of {trained.tensor}")
    own, before = row(new[trained.tensor], trained.row), row(old[trained.tensor], trained.row)
    if not np.isfinite(read_sample(read, own)).all():
        raise BadWeights(f"{file.path}: row {trained.row} of {trained.tensor} holds values that are not finite")
    if not _differs((read, own), (read_base, before)):
        raise BadWeights(f"{file.path} has the base model's row {trained.row}: training changed nothing")
    floats = [name for name in sorted(new) if new[name].is_float and new[name].shape != [0] and name != trained.tensor]
    for name in floats[:: max(1, len(floats) // FINITE_SAMPLES)]:
        if not _is_cast((read, new[name]), (read_base, old[name])):
            raise BadWeights(f"{file.path}: {name} is not the base model's, and one row alone was to be trained")


def _differs(new: tuple[Read, Tensor], old: tuple[Read, Tensor]) -> bool:
    """True where the samples differ beyond what the coarser of the two number formats rounds away."""
    coarsest = _coarser(new[1], old[1])
    one, other = (_rounded(read_sample(read, tensor), coarsest) for read, tensor in (new, old))
    return not np.array_equal(one, other)


def _is_cast(new: tuple[Read, Tensor], old: tuple[Read, Tensor]) -> bool:
    """True where the samples are no further apart than one step of the coarser number format, however it rounds."""
    one, other = (read_sample(read, tensor).astype(np.float64) for read, tensor in (new, old))
    return np.allclose(one, other, rtol=_STEPS.get(_coarser(new[1], old[1]), 0.0), atol=_LEAST_STEP)


def _coarser(one: Tensor, other: Tensor) -> str:
    return min((one.dtype, other.dtype), key=lambda dtype: {"BF16": 0, "F16": 1}.get(dtype, 2))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        return values.astype(np.float16)
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) + 0x8000) >> 16
    return values
