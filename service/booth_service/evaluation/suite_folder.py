"""A suite's folder: what encoders.json says, and each network and weight file that it names, checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, CLIPTokenizer
from transformers.utils import logging

from booth.contract.encoders import HEADS_FILE, LPIPS_FILE, SUITE_FILE, SuiteSpec
from booth_service.errors import EncoderError
from booth_service.evaluation.lpips import AlexNetLpips, BackboneLpips

_UNUSED = ("pooler.",)  # DINO's checkpoints have no pooler, and its vector does not come from there


def read_spec(folder: Path) -> SuiteSpec:
    """encoders.json of the folder, checked. Raises EncoderError."""
    path = folder / SUITE_FILE
    if not path.is_file():
        raise EncoderError(f"{folder} has no {SUITE_FILE}: it is not a suite of encoders. Give the folder that has one")
    try:
        spec = SuiteSpec.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise EncoderError(f"{path} does not describe a suite: {error}") from None
    for name in spec.folders:
        if not (folder / name).is_dir():
            raise EncoderError(f"{path} names the folder {name}, which is not beside it. Add the suite anew")
    return spec


def model(kind: Any, where: Path, device: torch.device, needs_pooler: bool = True) -> Any:
    """The network in fp32, ready; every tensor of it that is used comes from its file."""
    try:
        with _without_load_reports():
            network, found = kind.from_pretrained(
                where,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{where} cannot be loaded as a {kind.__name__}: {error}") from error
    missing = [key for key in sorted(found["missing_keys"]) if needs_pooler or not key.startswith(_UNUSED)]
    if missing:
        raise EncoderError(f"{where}: its weights lack {', '.join(missing[:5])}. Save the whole model there")
    return network.to(device).eval()


@contextmanager
def _without_load_reports() -> Iterator[None]:
    """transformers advises to train a pooler that is missing, which nobody uses; `model` says what matters."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def tokenizer(where: Path) -> Any:
    """The CLIP tokenizer of a folder."""
    try:
        return CLIPTokenizer.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise EncoderError(f"{where} has no CLIP tokenizer ({error}). Save it beside the model") from error


def perceptual(spec: SuiteSpec, folder: Path, device: torch.device) -> Any:
    """The suite's LPIPS, with or without AlexNet."""
    if spec.perceptual.kind == "backbone":
        backbone = model(AutoModel, folder / spec.perceptual.folder, device, needs_pooler=False)
        return BackboneLpips(backbone).eval()
    path = folder / spec.perceptual.folder / LPIPS_FILE
    try:
        return AlexNetLpips(_tensors(path)).to(device).eval()
    except EncoderError as error:
        raise EncoderError(f"{path}: {error.detail}") from None


def heads(spec: SuiteSpec, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight (labels, D) and bias (labels,) of each head, fp32 on the CPU."""
    if spec.attributes is None:
        return {}
    path = folder / spec.attributes.folder / HEADS_FILE
    there, made = _tensors(path), {}
    for name, head in spec.attributes.heads.items():
        weight, bias = there.get(f"{name}.weight"), there.get(f"{name}.bias")
        if weight is None or bias is None:
            raise EncoderError(f"{path} has no {name}.weight and {name}.bias. Train that head, or leave it out")
        if len(weight) != len(head.labels) or tuple(bias.shape) != (len(head.labels),):
            raise EncoderError(f"{path}: {name} has {len(weight)} rows, and {SUITE_FILE} {len(head.labels)} labels")
        made[name] = (weight.float(), bias.float())
    return made


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise EncoderError(f"there is no {path}. Put it there, or add the suite anew")
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path} is damaged: {error}. Fetch it again") from error
