"""Trained weights as safetensors files with the base model's own file layout and tensor names."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from booth_service.diffusion.components import live_name
from booth_service.errors import BadWeights


def export_file(module: nn.Module, base_folder: Path, path: Path, dtype: torch.dtype) -> bytes:
    """The base file at `path` with every trained tensor replaced by the module's, floats in `dtype`.

    Tensors that the module does not hold (position ids of old text encoders) are taken from the base, so that every
    program that reads the base folder reads this one. Raises BadWeights where a shape differs, a value is not finite,
    or the module holds none of the file's tensors.
    """
    live = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    base = load_file(base_folder / path)
    tensors: dict[str, Tensor] = {}
    replaced = 0
    for name, base_tensor in base.items():
        trained = live_name(name, live)
        source = base_tensor if trained is None else live[trained]
        replaced += trained is not None
        if source.shape != base_tensor.shape:
            raise BadWeights(f"{path}: {name} has shape {tuple(source.shape)}, the base {tuple(base_tensor.shape)}")
        if not torch.isfinite(source).all():
            raise BadWeights(f"{path}: {name} holds values that are not finite")
        tensors[name] = (source.to(dtype) if source.is_floating_point() else source).cpu().contiguous()
    if replaced == 0:
        raise BadWeights(f"{path}: none of its {len(base)} tensors belongs to the trained module")
    body: bytes = save(tensors, metadata={"format": "pt"})
    return body
