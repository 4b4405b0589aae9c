"""The manifest of a model that is a photo beside the prompt (method "ip_adapter"), checked before it can be seen.

Its one file is kilobytes: all of it is read.
"""

import hashlib

import numpy as np

from booth.contract.attempts import Manifest, Published, StoredFile
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH
from booth_service.control.base_adapters import weights_of, width_of
from booth_service.control.safetensors_header import Tensor, read_header, values_of
from booth_service.control.verification import Claim, check_stored, read_manifest
from booth_service.errors import BadWeights
from booth_service.storage.s3 import ObjectStore

MAX_BYTES = 64 * 2**20  # hidden states of a large image encoder take about 2 MiB


def verify_photo(store: ObjectStore, claim: Claim, adapter_files: list[StoredFile], published: Published) -> Manifest:
    """The manifest, where everything it says is so: the base model's files and its adapter's, and embeddings that the
    adapter reads. Raises BadWeights, or StorageError where the store is away."""
    manifest = read_manifest(store, claim, published)
    if [file.path for file in manifest.changed] != [EMBEDS_PATH]:
        raise BadWeights(f"a model of one photo changes {EMBEDS_PATH} alone")
    expected = sorted([*claim.base_files, *adapter_files], key=lambda file: file.path)
    if sorted(manifest.unchanged, key=lambda file: file.path) != expected:
        raise BadWeights("the model's other files are not those of its base model and of that one's IP-Adapter")
    (file,) = manifest.changed
    check_stored(store, claim, file)
    _check_embeds(_body(store, file), weights_of(store, adapter_files))
    return manifest


def _body(store: ObjectStore, file: StoredFile) -> bytes:
    if file.bytes > MAX_BYTES:
        raise BadWeights(f"{file.path} has {file.bytes} bytes, and {MAX_BYTES} are the most of a photo's embeddings")
    body = store.get(file.key)
    if hashlib.sha256(body).hexdigest() != file.sha256:
        raise BadWeights(f"{file.path} does not have the SHA-256 that its manifest says")
    return body


def _check_embeds(body: bytes, adapter: dict[str, Tensor]) -> None:
    tensors = read_header(lambda start, length: body[start : start + length], EMBEDS_PATH, len(body))
    if set(tensors) != {EMBEDS} or not tensors[EMBEDS].is_float:
        raise BadWeights(f"{EMBEDS_PATH} holds {', '.join(sorted(tensors)) or 'nothing'}, not floats as {EMBEDS} alone")
    tensor = tensors[EMBEDS]
    width, is_projected = width_of(adapter)
    if tensor.shape[:2] != [2, 1] or tensor.shape[-1] != width or len(tensor.shape) != (3 if is_projected else 4):
        raise BadWeights(
            f"{EMBEDS_PATH}: {EMBEDS} has shape {tensor.shape}, and the IP-Adapter reads a width of {width}"
        )
    values = values_of(body[tensor.start : tensor.start + tensor.bytes], tensor.dtype)
    if not np.isfinite(values).all():
        raise BadWeights(f"{EMBEDS_PATH}: {EMBEDS} holds values that are not finite")
    of_nothing, of_photo = np.split(values, 2)
    if np.array_equal(of_nothing, of_photo):
        raise BadWeights(f"{EMBEDS_PATH}: the photo's embeddings are those of no photo")
