"""Weights of many models in host memory: complete for a pipeline's trained components, verified by hash."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from booth.contract.attempts import Manifest
from booth_service.diffusion.components import family_of, live_name, weight_files
from booth_service.inference.tensor_file import tensors_in
from booth_service.storage.base_model import reference_views
from booth_service.storage.fetch import fetch
from booth_service.storage.s3 import ObjectStore

Weights = dict[str, dict[str, Tensor]]  # component -> tensor name in the file -> tensor


class WeightsCache:
    """Weights by name, the least recently used dropped first. Thread-safe; a caller keeps what it got."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._entries: OrderedDict[str, Weights] = OrderedDict()
        self._forgotten: set[str] = set()
        self._lock = threading.Lock()

    def get(self, name: str, fetch: Callable[[], Weights]) -> Weights:
        """The weights under this name, fetched where absent; nothing is dropped before the fetch has succeeded."""
        with self._lock:
            if name in self._entries:
                self._entries.move_to_end(name)
                return self._entries[name]
        weights = fetch()
        with self._lock:
            if name in self._forgotten:  # while it was on its way
                return weights
            if name not in self._entries:
                self._entries[name] = weights
                self.bytes += size_bytes(weights)
            while self.bytes > self.capacity_bytes and len(self._entries) > 1:
                _, dropped = self._entries.popitem(last=False)
                self.bytes -= size_bytes(dropped)
        return weights

    def forget(self, name: str) -> None:
        """The weights under this name are dropped, and kept no more should they still arrive."""
        with self._lock:
            self._forgotten.add(name)
            dropped = self._entries.pop(name, {})
            self.bytes -= size_bytes(dropped)

    def names(self) -> list[str]:
        """What is held, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def size_bytes(weights: Weights) -> int:
    """Host memory that these weights take."""
    return sum(tensor.nbytes for tensors in weights.values() for tensor in tensors.values())


def base_weights(folder: Path) -> Weights:
    """Every component of a base model folder that a job may train."""
    return {
        component: {
            name: tensor
            for path in weight_files(folder, component)
            for name, tensor in load_file(folder / path).items()
        }
        for component in family_of(folder).trained_folders(train_text_encoder=True)
    }


def published_weights(
    store: ObjectStore, manifest_key: str, manifest_sha256: str, scratch_dir: str | None = None
) -> Weights:
    """The changed tensors of a published model, each file in one piece of memory that was filled from the store.

    Files that are stored as differences are added to the base model's, which this node keeps below `scratch_dir`.
    Raises StorageError where bytes do not have the recorded hashes, BadWeights where a file is no safetensors file.
    """
    manifest = Manifest.model_validate_json(store.get(manifest_key, manifest_sha256))
    memory = [torch.empty(file.bytes, dtype=torch.uint8) for file in manifest.changed]
    views = [each.numpy().data for each in memory]
    references = [file.delta.reference for file in manifest.changed if file.delta]
    fetch(store, list(zip(manifest.changed, views, strict=True)), reference_views(store, references, scratch_dir))
    weights: Weights = {}
    for file, each in zip(manifest.changed, memory, strict=True):
        weights.setdefault(file.path.split("/")[0], {}).update(tensors_in(file.key, each))
    return weights


@torch.no_grad()
def copy_into(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy a file's tensors into a live module, whose own tensors keep their addresses."""
    live = module.state_dict()
    for name, tensor in tensors.items():
        target = live_name(name, live)
        if target is not None:
            live[target].copy_(tensor)
