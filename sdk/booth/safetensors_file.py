"""Safetensors files without torch: where each tensor lies, and new files streamed from pieces of others.

The format: eight bytes with the header's length, a JSON header of name -> dtype, shape, offsets, then the tensors'
bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from booth.errors import FormatError

ITEM_BYTES = {
    name: bits // 8
    for bits, names in {
        8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"),
        16: ("U16", "I16", "F16", "BF16"),
        32: ("U32", "I32", "F32"),
        64: ("U64", "I64", "F64"),
    }.items()
    for name in names
}
MAX_HEADER_BYTES = 100_000_000  # what the format's own library takes
PIECE_BYTES = 4 << 20

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `bytes` bytes from `start` on, row by row, little endian."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor of a file to be written: stored ones under one another, one of them transposed, or bytes at hand."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[StoredTensor, ...] = ()
    is_transposed: bool = False
    content: bytes = b""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file by name; reads the header alone. Raises FormatError where it is not such a file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path.name} is not a safetensors file that can be read ({error}).") from error


def write(path: Path, tensors: Iterable[NewTensor]) -> None:
    """The file holds the tensors, sorted so that each lies on a multiple of its item's size.

    Streams: of a transposed tensor the whole is held in memory, of any other a few MiB.
    """
    ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    with ExitStack() as stack, path.open("xb") as out:
        out.write(_header(ordered))
        files: dict[Path, BinaryIO] = {}
        for tensor in ordered:
            written = 0
            for piece in _pieces(tensor, files, stack):
                out.write(piece)
                written += len(piece)
            assert written == tensor.bytes, f"{tensor.name}: {written} bytes for {tensor.shape} {tensor.dtype}"


def transposed(data: bytes, columns: int, item_bytes: int) -> bytes:
    """The bytes of a matrix's transpose; the matrix has `columns` columns of items of `item_bytes` bytes."""
    cells = array(_CODES[item_bytes], data)
    return b"".join(cells[column::columns].tobytes() for column in range(columns))


def _stored(path: Path, data_start: int, entry: dict[str, list[int]]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    stored = StoredTensor(path, str(entry["dtype"]), tuple(entry["shape"]), data_start + begin, end - begin)
    if stored.dtype not in ITEM_BYTES or prod(stored.shape) * ITEM_BYTES[stored.dtype] != stored.bytes:
        raise ValueError(f"{stored.bytes} bytes for {stored.shape} {stored.dtype}")
    return stored


def _header(tensors: list[NewTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _pieces(tensor: NewTensor, files: dict[Path, BinaryIO], stack: ExitStack) -> Iterator[bytes]:
    if not tensor.sources:
        yield tensor.content
    for source in tensor.sources:
        if source.path not in files:
            files[source.path] = stack.enter_context(source.path.open("rb"))
        file = files[source.path]
        file.seek(source.start)
        if tensor.is_transposed:
            yield transposed(file.read(source.bytes), source.shape[1], ITEM_BYTES[source.dtype])
            continue
        for offset in range(0, source.bytes, PIECE_BYTES):
            yield file.read(min(PIECE_BYTES, source.bytes - offset))
