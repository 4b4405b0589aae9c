"""A flipped byte in any stored weight file, of a base model or of a published one, is refused by hash and named."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from faulty_publishing import small_models
from own_s3 import own_s3
from publishing_ranks import Publication
from safetensors.torch import load_file
from whole_weights import WholeWeights

from booth_service.errors import StorageError
from booth_service.inference.weights import published_weights, read_manifest
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore


def row(folder: Path) -> str:
    """Every file of a base model in turn, then every changed file of a model."""
    with own_s3(folder / "s3") as server:
        store = server.empty_bucket()
        (far, _, near) = small_models(store, folder, 3)
        nodes = (str(folder / f"node-{number}") for number in itertools.count())  # each has nothing yet
        base_keys = [file.key for file in far.base_files]
        base = flip_each(store, base_keys, lambda: materialize(store, far.base_files, next(nodes)))
        read, published_keys = published(far, store, nodes)
        whole = flip_each(store, published_keys, read)
        read, published_keys = published(near, store, nodes)
        differences = flip_each(store, published_keys, read)
    return f"{base} base files, {whole} published ones, {differences} chunks and references refused"


def published(model: Publication, store: ObjectStore, nodes: Iterator[str]) -> tuple[Callable[[], object], list[str]]:
    """Publish it; how a node reads its weights, and all objects that this takes. Read once, undamaged."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for whole_name, tensor in load_file(model.weights).items():
        component, name = whole_name.split(".", 1)
        parts.setdefault(component, {})[name] = tensor
    changed = Export(model.brief, store, next(nodes))(WholeWeights(parts), lambda *_: None)
    key, sha256 = publish_manifest(model.brief, changed, store)
    published_weights(store, read_manifest(store, key, sha256), next(nodes))
    objects: list[str] = []
    for file in changed:
        if file.delta is None:
            objects.append(file.key)
        else:
            objects += [keys.model_chunk(file.key, part) for part in range(len(file.delta.chunk_bytes))]
            objects.append(file.delta.reference.key)
    return lambda: published_weights(store, read_manifest(store, key, sha256), next(nodes)), objects


def flip_each(store: ObjectStore, objects: list[str], read: Callable[[], object]) -> int:
    """Flip a bit in the middle of one object after the other; reading must refuse it by its key."""
    for key in objects:
        body = bytearray(store.get(key))
        middle = len(body) // 2
        store.put(key, bytes(body[:middle]) + bytes([body[middle] ^ 1]) + bytes(body[middle + 1 :]))
        with pytest.raises(StorageError, match=key):
            read()
        store.put(key, bytes(body))
    return len(objects)
