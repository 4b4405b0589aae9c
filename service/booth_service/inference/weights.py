"""Weights of models as they come from the object store or from a base model's folder, verified by hash."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from booth.contract.attempts import Manifest
from booth_service.diffusion.components import weight_files
from booth_service.errors import BadWeights
from booth_service.inference.host_memory import host_memory
from booth_service.inference.tensor_file import tensors_in
from booth_service.storage.base_model import reference_views
from booth_service.storage.fetch import fetch
from booth_service.storage.s3 import ObjectStore

Weights = Mapping[str, Mapping[str, Tensor]]  # component -> tensor name in the file -> tensor

_ALIGNED_BYTES = 64  # a vector register, and what copies like


def read_manifest(store: ObjectStore, key: str, sha256: str) -> Manifest:
    """What a published model consists of. Raises StorageError, where it is absent or is not the one of this hash."""
    return Manifest.model_validate_json(store.get(key, sha256))


def changed_components(manifest: Manifest) -> list[str]:
    """The components whose weights are the model's own, in the manifest's order."""
    return list(dict.fromkeys(file.path.split("/")[0] for file in manifest.changed))


def published_weights(
    store: ObjectStore,
    manifest: Manifest,
    scratch_dir: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    pinned: bool = False,
) -> Weights:
    """The changed tensors of a published model, each file in one piece of memory that was filled from the store.

    Files that are stored as differences are added to the base model's, which this node keeps below `scratch_dir`.
    With `dtype` floats of its width are of that format. Raises StorageError where bytes do not have the recorded
    hashes, BadWeights where a file is no safetensors file.
    """
    memory = [host_memory(file.bytes, pinned=pinned) for file in manifest.changed]
    views = [each.numpy().data for each in memory]
    references = [file.delta.reference for file in manifest.changed if file.delta]
    fetch(store, list(zip(manifest.changed, views, strict=True)), reference_views(store, references, scratch_dir))
    weights: dict[str, dict[str, Tensor]] = {}
    for file, each in zip(manifest.changed, memory, strict=True):
        tensors = tensors_in(file.key, each)
        weights.setdefault(file.path.split("/")[0], {}).update(
            {name: _converted_in_place(tensor, dtype) for name, tensor in tensors.items()}
        )
    return weights


def base_component_bytes(folder: Path, component: str, dtype: torch.dtype) -> int:
    """Memory that `base_component` takes, from the files' headers alone. Raises BadWeights."""
    return packed_bytes(_shapes(folder, component, dtype))


def base_component(folder: Path, component: str, dtype: torch.dtype, *, pinned: bool = False) -> Mapping[str, Tensor]:
    """A component of a base model folder by the names in its files, in one piece of memory.

    Floats wider than `dtype` are of that format, as the pipeline's own are. Raises BadWeights.
    """
    shapes = _shapes(folder, component, dtype)
    packed = pack(shapes, host_memory(packed_bytes(shapes), pinned=pinned))
    for path in weight_files(folder, component):
        with _opened(folder / path) as file:
            for name in file.keys():  # noqa: SIM118
                packed[name].copy_(file.get_tensor(name))
    return packed


def pack(shapes: Mapping[str, tuple[torch.Size, torch.dtype]], memory: Tensor) -> dict[str, Tensor]:
    """Tensors of these shapes one after the other in `memory`, uint8 of `packed_bytes` or more."""
    packed, start = {}, 0
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        packed[name] = memory[start : start + size].view(dtype).reshape(shape)
        start += _aligned(size)
    return packed


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What `pack` needs to make as many tensors like these."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def packed_bytes(shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> int:
    """Memory that tensors of these shapes take one after the other."""
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in shapes.values())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _shapes(folder: Path, component: str, dtype: torch.dtype) -> dict[str, tuple[torch.Size, torch.dtype]]:
    shapes = {}
    for path in weight_files(folder, component):
        with _opened(folder / path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)  # mapped, not read
                is_wider = tensor.is_floating_point() and tensor.dtype.itemsize >= dtype.itemsize
                shapes[name] = (tensor.shape, dtype if is_wider else tensor.dtype)
    return shapes


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:
        raise BadWeights(f"{path} is not a safetensors file ({error})") from error


def _converted_in_place(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The same values in a format of the same width, in the same memory; another width is left as it is."""
    if dtype in (None, tensor.dtype) or not tensor.is_floating_point() or tensor.dtype.itemsize != dtype.itemsize:
        return tensor
    values = tensor.clone()
    return tensor.view(dtype).copy_(values)
