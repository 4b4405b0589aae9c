"""Trained weights as safetensors files with the base model's own file layout and tensor names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from booth_service.diffusion.components import live_name
from booth_service.errors import BadWeights


def export_file(tensors: Mapping[str, Tensor], base_folder: Path, path: Path, dtype: torch.dtype) -> bytes:
    """The base file at `path` with every trained tensor in place of its own, floats in `dtype`.

    `tensors` are named as in the loaded module. What they lack (layers that are not trained, position ids of old text
    encoders) is taken from the base, so that every program that reads the base folder reads this one. Raises
    BadWeights where a shape differs, a value is not finite, or none of them belongs to the file.
    """
    base = load_file(base_folder / path)
    exported: dict[str, Tensor] = {}
    replaced = 0
    for name, base_tensor in base.items():
        trained = live_name(name, tensors)
        source = base_tensor if trained is None else tensors[trained].detach()
        replaced += trained is not None
        if source.shape != base_tensor.shape:
            raise BadWeights(f"{path}: {name} has shape {tuple(source.shape)}, the base {tuple(base_tensor.shape)}")
        if not torch.isfinite(source).all():
            raise BadWeights(f"{path}: {name} holds values that are not finite")
        exported[name] = (source.to(dtype) if source.is_floating_point() else source).cpu().contiguous()
    if replaced == 0:
        raise BadWeights(f"{path}: none of its {len(base)} tensors is among the trained ones")
    body: bytes = save(exported, metadata={"format": "pt"})
    return body
