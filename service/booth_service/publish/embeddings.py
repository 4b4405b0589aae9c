"""What Textual Inversion learned as one small file, as diffusers and other programs take it."""

import torch
from safetensors.torch import save
from torch import Tensor

from booth_service.diffusion.placeholder import row_of
from booth_service.publish.export import TrainedWeights
from booth_service.publish.gang import Gang

# What programs call the encoders of Stable Diffusion XL (diffusers' guide "Textual inversion", A1111, ComfyUI).
KEYS_OF_TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def learned_embeds(weights: TrainedWeights, token: str, gang: Gang) -> bytes | None:
    """The file's bytes, on every rank; None where no row was trained. Rows are the fp32 masters, (1, D) each.

    Of one text encoder the row's key is "<token>", in brackets so that no vocabulary has it already; of two encoders
    each row has its encoder's name.
    """
    names = [name for name in weights.shapes if row_of(name)]
    if not names:
        return None
    rows = [_whole(weights, name, gang) for name in names]
    keys = [f"<{token}>"] if len(names) == 1 else [KEYS_OF_TWO[name.split(".")[0]] for name in names]
    body: bytes = save(dict(zip(keys, rows, strict=True)), metadata={"format": "pt"})
    return body


def _whole(weights: TrainedWeights, name: str, gang: Gang) -> Tensor:
    whole = torch.zeros(weights.shapes[name])
    held = weights.fragment(name)
    for piece in gang.everyone(None if held is None else (held[0], held[1].detach().float().cpu())):
        if piece is not None:
            start, values = piece
            whole.view(-1)[start : start + len(values)] = values
    return whole
