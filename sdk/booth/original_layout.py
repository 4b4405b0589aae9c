"""A diffusers folder as one file of the original Stable Diffusion layout, which ComfyUI and AUTOMATIC1111 take.

Every weight keeps its dtype: both programs cast to their own when they load. The file has all keys of the family's
published checkpoint but three kinds: of Stable Diffusion 2.x, the last layer and the projection of the text encoder,
which diffusers folders lack and which no picture needs; and `model_ema.*`, of a training that was not this one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

from booth import noise_schedule, safetensors_file
from booth.errors import FormatError
from booth.original_names import clip_name, open_clip_name, unet_names, vae_names
from booth.safetensors_file import NewTensor, StoredTensor

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
LOGIT_SCALE = log(100)  # where open_clip's training clips it; folders lack it, and no picture depends on it

Tensors = Mapping[str, StoredTensor]


def is_needed(path: str) -> bool:
    """True for the files of a diffusers folder that the original layout is made from."""
    folder, _, name = path.rpartition("/")
    is_described = name.endswith(".json") and folder in ("", "scheduler", *PARTS)
    return is_described or (folder in PARTS and name.endswith(".safetensors"))


def write_original(folder: Path, target: Path) -> None:
    """The model of a diffusers folder lies in the new file `target`. Raises FormatError where it cannot.

    Streams: no more than one tensor is held in memory.
    """
    parts = {part: _tensors(folder / part) for part in PARTS if (folder / part).is_dir()}
    configs = {name: _json(folder / name / "config.json") for name in parts if name.startswith("text_encoder")}
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    class_name = _json(folder / "model_index.json").get("_class_name")
    if class_name == SD:
        tensors = stable_diffusion(parts, configs["text_encoder"], scheduler)
    elif class_name == SDXL:
        tensors = stable_diffusion_xl(parts, configs["text_encoder"], scheduler)
    else:
        raise FormatError(f"A {class_name} has no original layout that is known here; {SD} and {SDXL} have.")
    safetensors_file.write(target, tensors)


def stable_diffusion(
    parts: Mapping[str, Tensors], text_config: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> list[NewTensor]:
    """All tensors of an original Stable Diffusion 1.x or 2.x checkpoint.

    OpenAI's text encoder (1.x) has its own activation, quick_gelu; that of open_clip (2.x) has the exact one.
    """
    if text_config.get("hidden_act", "quick_gelu") == "quick_gelu":  # transformers' default
        text = clip(parts["text_encoder"], "cond_stage_model.transformer.", text_config)
    else:
        text = open_clip(parts["text_encoder"], "cond_stage_model.model.")
    betas = noise_schedule.betas(scheduler)
    schedule = noise_schedule.buffers(betas) if betas else {}
    buffers = [NewTensor(name, "F32", (len(content) // 4,), content=content) for name, content in schedule.items()]
    return [*unet(parts["unet"]), *vae(parts["vae"]), *text, *buffers]


def stable_diffusion_xl(
    parts: Mapping[str, Tensors], text_config: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> list[NewTensor]:
    """All tensors of an original Stable Diffusion XL checkpoint.

    It carries no noise schedule. A base model that predicts v, or goes to zero SNR, says so by the empty tensors that
    ComfyUI (comfy/supported_models.py) and others look for.
    """
    markers = []
    if scheduler.get("prediction_type") == "v_prediction":
        markers.append(NewTensor("v_pred", "F32", (0,)))
        if scheduler.get("rescale_betas_zero_snr"):
            markers.append(NewTensor("ztsnr", "F32", (0,)))
    return [
        *unet(parts["unet"]),
        *vae(parts["vae"]),
        *clip(parts["text_encoder"], "conditioner.embedders.0.transformer.", text_config),
        *open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model."),
        *markers,
    ]


def unet(tensors: Tensors) -> list[NewTensor]:
    """The UNet's tensors under their original names; their shapes are the same in both layouts."""
    names = unet_names(tensors)
    return [_as_it_is(f"model.diffusion_model.{names[name]}", stored) for name, stored in tensors.items()]


def vae(tensors: Tensors) -> list[NewTensor]:
    """The VAE's tensors under their original names; the attention's matrices were convolutions of one pixel."""
    names = vae_names(tensors)
    found = []
    for name, stored in tensors.items():
        is_matrix = ".attentions." in name and len(stored.shape) == 2
        shape = (*stored.shape, 1, 1) if is_matrix else stored.shape
        found.append(NewTensor(f"first_stage_model.{names[name]}", stored.dtype, shape, (stored,)))
    return found


def clip(tensors: Tensors, prefix: str, config: Mapping[str, Any]) -> list[NewTensor]:
    """The tensors of OpenAI's text encoder, with the position ids that newer folders leave out."""
    found = {clip_name(name): _as_it_is(prefix + clip_name(name), stored) for name, stored in tensors.items()}
    position_ids = "text_model.embeddings.position_ids"
    if position_ids not in found:
        length = int(config.get("max_position_embeddings", 77))  # transformers' default
        content = struct.pack(f"<{length}q", *range(length))
        found[position_ids] = NewTensor(prefix + position_ids, "I64", (1, length), content=content)
    return list(found.values())


def open_clip(tensors: Tensors, prefix: str) -> list[NewTensor]:
    """The tensors of open_clip's text encoder: query, key and value in one, the projection transposed."""
    found = [NewTensor(f"{prefix}logit_scale", "F32", (), content=struct.pack("<f", LOGIT_SCALE))]
    attention: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in tensors.items():
        original = open_clip_name(name)
        if ".in_proj_" in original:
            attention.setdefault(original, {})[name.split(".")[-2]] = stored
        elif original == "text_projection":
            found.append(NewTensor(prefix + original, stored.dtype, stored.shape[::-1], (stored,), is_transposed=True))
        elif not original.endswith("position_ids"):
            found.append(_as_it_is(prefix + original, stored))
    for original, by_kind in attention.items():
        found.append(_stacked(prefix + original, [by_kind[kind] for kind in ("q_proj", "k_proj", "v_proj")]))
    return found


def _as_it_is(name: str, stored: StoredTensor) -> NewTensor:
    return NewTensor(name, stored.dtype, stored.shape, (stored,))


def _stacked(name: str, stored: list[StoredTensor]) -> NewTensor:
    rows = sum(tensor.shape[0] for tensor in stored)
    return NewTensor(name, stored[0].dtype, (rows, *stored[0].shape[1:]), tuple(stored))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a part, in however many files it lies."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: stored for path in files for name, stored in safetensors_file.read_header(path).items()}


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
