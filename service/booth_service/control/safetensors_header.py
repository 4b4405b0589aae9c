"""What a safetensors file holds, read by ranges: names, shapes, and values of its tensors."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from booth_service.errors import BadWeights

MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
SAMPLE_BYTES = 64 * 2**10
CHUNK_BYTES = 16 * 2**20
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}  # numpy has no bfloat16
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Read = Callable[[int, int], bytes]  # (start, length) of a file -> its bytes


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `start` is its first byte in the file."""

    dtype: str
    shape: list[int]
    start: int
    bytes: int

    @property
    def is_float(self) -> bool:
        return self.dtype in _WIDTHS

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def scan(read: Read, name: str, total_bytes: int) -> tuple[str, str | None]:
    """A file's SHA-256, and the first of its tensors that holds NaN or infinity; every byte is read once, in order.

    `read(start, length)` gives its bytes. Raises BadWeights where it is no whole safetensors file.
    """
    tensors = sorted(read_header(read, name, total_bytes).items(), key=lambda item: item[1].start)
    digest, not_finite, at = hashlib.sha256(), None, 0
    while at < total_bytes:
        end = _cut(min(at + CHUNK_BYTES, total_bytes), tensors)
        chunk = read(at, end - at)
        digest.update(chunk)
        for own_name, tensor in tensors:
            first, last = max(at, tensor.start), min(end, tensor.start + tensor.bytes)
            if tensor.is_float and first < last and not_finite is None:
                values = values_of(chunk[first - at : last - at], tensor.dtype)
                not_finite = None if np.isfinite(values).all() else own_name
        at = end
    return digest.hexdigest(), not_finite


def _cut(at: int, tensors: list[tuple[str, Tensor]]) -> int:
    """The last place up to `at` that lies in no value of a tensor."""
    for _, tensor in tensors:
        if tensor.is_float and tensor.start < at < tensor.start + tensor.bytes:
            return at - (at - tensor.start) % _WIDTHS[tensor.dtype]
    return at


def read_header(read: Read, key: str, total_bytes: int) -> dict[str, Tensor]:
    """A file's tensors by name. Raises BadWeights where it is no whole safetensors file."""
    if total_bytes < 8:
        raise BadWeights(f"{key} is not a safetensors file (it has {total_bytes} bytes)")
    try:
        (length,) = struct.unpack("<Q", read(0, 8))
        if length > min(MAX_HEADER_BYTES, total_bytes - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(read(8, length))
        header.pop("__metadata__", None)
        tensors = {name: _tensor(entry, 8 + length) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{key} is not a safetensors file ({error})") from None
    end = max((tensor.start + tensor.bytes for tensor in tensors.values()), default=0)
    if end != total_bytes:
        raise BadWeights(f"{key} has {total_bytes} bytes, its header describes {end}")
    return tensors


def read_sample(read: Read, tensor: Tensor) -> np.ndarray:
    """The first values of a floating-point tensor, up to SAMPLE_BYTES of the file, as float64 or float32."""
    width = _WIDTHS[tensor.dtype]
    count = min(tensor.count, SAMPLE_BYTES // 8)  # the same number of values in every format
    return values_of(read(tensor.start, count * width), tensor.dtype)


def row(tensor: Tensor, number: int) -> Tensor:
    """One row of a tensor, along its first dimension, as a tensor of its own."""
    width = tensor.bytes // tensor.shape[0]
    return Tensor(tensor.dtype, [1, *tensor.shape[1:]], tensor.start + number * width, width)


def values_of(data: bytes, dtype: str) -> np.ndarray:
    """A floating-point tensor's values, of bfloat16 as float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, NUMPY[dtype])


def _tensor(entry: dict[str, object], data_start: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(end)]}:
            return Tensor(dtype, [int(size) for size in shape], data_start + first, end - first)
    raise ValueError("a tensor without dtype, shape or offsets")
