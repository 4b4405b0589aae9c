"""What publishing an untrained base model would give: files that trained ones are stored as small differences to."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from booth.contract.attempts import StoredFile
from booth.contract.jobs import ExportDtype
from booth_service.control.base_sources import SourceFile
from booth_service.control.safetensors_header import Read, read_header
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.tensor_layout import CODES, CONVERTED, WIDTHS, TensorInfo, arrange, published_info

TRAINED_FOLDERS = ("unet", "text_encoder", "text_encoder_2")
PIECE_BYTES = 8 * 2**20  # a multiple of every format's width
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_BF16_NAN = 0x7FC0


def is_trained(path: str) -> bool:
    """Whether jobs may change this file of a base model."""
    return path.endswith(".safetensors") and path.split("/")[0] in TRAINED_FOLDERS


def stored_reference(
    store: ObjectStore, file: StoredFile, source: SourceFile, dtype: ExportDtype, scratch_dir: str | None
) -> StoredFile | None:
    """The record of the file's reference, which is in the object store by content; takes its size on disk meanwhile.

    None where the file holds a format that is not published. A base that is published already in `dtype`, laid out as
    safetensors does it, is its own reference and is not stored again.
    """
    tensors = read_header(source.read, file.path, file.bytes)
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if any(info.code not in WIDTHS for info in infos.values()):
        return None
    with tempfile.NamedTemporaryFile(dir=scratch_dir, prefix="booth-reference-") as out:
        sha256 = write_reference(source.read, infos, {name: t.start for name, t in tensors.items()}, dtype, out)
        out.flush()
        made = Path(out.name)
        reference = StoredFile(path=file.path, key=keys.base_file(sha256), bytes=made.stat().st_size, sha256=sha256)
        if store.size(reference.key) != reference.bytes:
            store.upload(made, reference.key)
    return reference


def write_reference(
    read: Read, infos: Mapping[str, TensorInfo], starts: Mapping[str, int], dtype: ExportDtype, out: IO[bytes]
) -> str:
    """The reference's bytes go to `out`, piece by piece; its SHA-256. `starts` are the tensors' first bytes in the base
    file, which `read` reads."""
    head, places = arrange({name: published_info(info, CODES[dtype]) for name, info in infos.items()})
    digest = hashlib.sha256(head)
    out.write(head)
    for name, published, _, size in places:
        code = infos[name].code
        stored_bytes = size // WIDTHS[published.code] * WIDTHS[code]
        for at in range(0, stored_bytes, PIECE_BYTES):
            piece = read(starts[name] + at, min(PIECE_BYTES, stored_bytes - at))
            converted = cast(piece, code, published.code)
            digest.update(converted)
            out.write(converted)
    return digest.hexdigest()


def cast(data: bytes, code: str, to: str) -> bytes:
    """Values of one format in another, rounded to the nearest, ties to even, by way of fp32 as torch does it."""
    if code == to or code not in CONVERTED:
        return data
    values: NDArray[np.float32]
    if code == "BF16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore"):
            values = np.frombuffer(data, _NUMPY[code]).astype(np.float32)
    if to == "BF16":
        return _bf16_bits(values).tobytes()
    with np.errstate(over="ignore"):  # as torch: infinite, and then just a poor reference
        return values.astype(_NUMPY[to]).tobytes()


def _bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), _BF16_NAN, rounded).astype("<u2")
