"""What publishing an untrained base model would give: files that trained ones are stored as small differences to."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from booth.contract.attempts import StoredFile
from booth.contract.jobs import ExportDtype
from booth_service.control.base_sources import SourceFile
from booth_service.control.safetensors_header import NUMPY, Read, Tensor, read_header, values_of
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.tensor_layout import CODES, CONVERTED, WIDTHS, TensorInfo, arrange, published_info

TRAINED_FOLDERS = ("unet", "text_encoder", "text_encoder_2")
PART_BYTES = 32 * 2**20
PIECE_BYTES = 8 * 2**20  # a multiple of every format's width
_BF16_NAN = 0x7FC0


def is_trained(path: str) -> bool:
    """Whether jobs may change this file of a base model."""
    return path.endswith(".safetensors") and path.split("/")[0] in TRAINED_FOLDERS


def stored_reference(store: ObjectStore, file: StoredFile, source: SourceFile, dtype: ExportDtype) -> StoredFile | None:
    """The record of the file's reference, which is in the object store by content. The source is read once or twice,
    and nothing of it goes onto a disk here.

    None where the file holds a format that is not published. A base that lies there in `dtype` as safetensors lays it
    out is its own reference and is not stored again.
    """
    tensors = read_header(source.read, file.path, file.bytes)
    if any(tensor.dtype not in WIDTHS for tensor in tensors.values()):
        return None
    digest, total_bytes = hashlib.sha256(), 0
    for piece in pieces(source.read, tensors, dtype):
        digest.update(piece)
        total_bytes += len(piece)
    sha256 = digest.hexdigest()
    key = keys.base_file(sha256)
    if store.size(key) != total_bytes:
        _upload(store, key, pieces(source.read, tensors, dtype), total_bytes)
    return StoredFile(path=file.path, key=key, bytes=total_bytes, sha256=sha256)


def pieces(read: Read, tensors: Mapping[str, Tensor], dtype: ExportDtype) -> Iterator[bytes]:
    """The reference's bytes in order, a few MiB at a time. `read` reads the base file, whose header `tensors` is."""
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    head, places = arrange({name: published_info(info, CODES[dtype]) for name, info in infos.items()})
    yield head
    for name, published, _, _ in places:
        tensor = tensors[name]
        for at in range(0, tensor.bytes, PIECE_BYTES):
            piece = read(tensor.start + at, min(PIECE_BYTES, tensor.bytes - at))
            yield cast(piece, tensor.dtype, published.code)


def _upload(store: ObjectStore, key: str, content: Iterator[bytes], total_bytes: int) -> None:
    with store.uploading(key, total_bytes) as put:
        for number, body in enumerate(_in_parts(content), 1):
            put(number, body)


def _in_parts(content: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of PART_BYTES, the last one shorter."""
    part = bytearray()
    for piece in content:
        part += piece
        while len(part) >= PART_BYTES:
            yield bytes(part[:PART_BYTES])
            del part[:PART_BYTES]
    if part:
        yield bytes(part)


def cast(data: bytes, code: str, to: str) -> bytes:
    """Values of one format in another, rounded to the nearest, ties to even, by way of fp32 as torch does it."""
    if code == to or code not in CONVERTED:
        return data
    with np.errstate(over="ignore"):  # as torch: infinite, and then just a poor reference
        values: NDArray[np.float32] = values_of(data, code).astype(np.float32)
        return (_bf16_bits(values) if to == "BF16" else values.astype(NUMPY[to])).tobytes()


def _bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), _BF16_NAN, rounded).astype("<u2")
