"""A flipped byte in any stored weight file, of a base model or of a published one, is refused by hash and named."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faulty_publishing import small_models
from own_s3 import own_s3
from safetensors.torch import load_file
from whole_weights import WholeWeights

from booth.contract.attempts import Manifest, StoredFile
from booth_service.errors import StorageError
from booth_service.inference.weights import published_weights
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore


def row(folder: Path) -> str:
    """Every file of a base model in turn, then every changed file of a model."""
    with own_s3(folder / "s3") as server:
        store = server.empty_bucket()
        (model,) = small_models(store, folder, 1)
        scratch = str(folder / "scratch")
        nodes = (str(folder / f"node-{number}") for number in itertools.count())  # that have fetched nothing yet
        base = flip_each(store, model.base_files, lambda: materialize(store, model.base_files, next(nodes)))
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for whole_name, tensor in load_file(model.weights).items():
            component, name = whole_name.split(".", 1)
            parts.setdefault(component, {})[name] = tensor
        changed = Export(model.brief, store, scratch)(WholeWeights(parts), lambda *_: None)
        key, sha256 = publish_manifest(model.brief, changed, store)
        files = Manifest.model_validate_json(store.get(key)).changed
        published = flip_each(store, files, lambda: published_weights(store, key, sha256))
        published_weights(store, key, sha256)
    return f"{base} base files and {published} published ones refused"


def flip_each(store: ObjectStore, files: list[StoredFile], read: Callable[[], object]) -> int:
    """Flip a bit in the middle of one file after the other; reading must refuse it by its key."""
    for file in files:
        body = bytearray(store.get(file.key))
        middle = len(body) // 2
        store.put(file.key, bytes(body[:middle]) + bytes([body[middle] ^ 1]) + bytes(body[middle + 1 :]))
        with pytest.raises(StorageError, match=file.key):
            read()
        store.put(file.key, bytes(body))
    return len(files)
