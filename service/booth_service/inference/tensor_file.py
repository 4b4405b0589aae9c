"""A safetensors file that lies in memory, as tensors that share that memory."""

import json
import math
import struct
from typing import Any

import torch
from torch import Tensor

from booth_service.errors import BadWeights

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensors_in(name: str, memory: Tensor) -> dict[str, Tensor]:
    """The file's tensors by name; `memory` is the whole file as uint8, and lives as long as any of them.

    Raises BadWeights, naming the file, where it is no safetensors file.
    """
    try:
        (length,) = struct.unpack("<Q", memory[:8].numpy().tobytes())
        header = json.loads(memory[8 : 8 + length].numpy().tobytes())
        header.pop("__metadata__", None)
        data = memory[8 + length :]
        return {own_name: _tensor(data, **entry) for own_name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{name} is not a safetensors file ({error!r})") from error


def _tensor(data: Tensor, dtype: str, shape: list[int], data_offsets: list[int], **_: Any) -> Tensor:
    first, end = data_offsets
    kind = _DTYPES[dtype]
    if not 0 <= first <= end <= len(data) or end - first != math.prod(shape) * kind.itemsize:
        raise ValueError(f"bytes {first} to {end} for shape {shape} in {dtype}")
    piece = data[first:end]
    if piece.storage_offset() % kind.itemsize:
        piece = piece.clone()  # of a writer that did not pad its header
    return piece.view(kind).reshape(shape)
