"""Where every tensor lies in a published safetensors file: a function of names, formats and shapes. No torch in here.

safetensors: 8 bytes with the header's length, the header in JSON padded to a multiple of 8, and the tensors one after
the other without holes. Files are laid out as the safetensors library itself writes them.
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

# safetensors' own order of a file's tensors, then by name; and the bytes of one element.
WIDTHS = {
    "U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2, "I16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_ORDER = list(WIDTHS)
CONVERTED = {"F16", "BF16", "F32", "F64"}
CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


class TensorInfo(NamedTuple):
    """What a file's header says of one tensor: safetensors' code of its format, and its shape."""

    code: str
    shape: tuple[int, ...]


class Place(NamedTuple):
    """Bytes [start, start + bytes) of a file, which hold one tensor."""

    name: str
    info: TensorInfo
    start: int
    bytes: int


def published_info(base: TensorInfo, code: str) -> TensorInfo:
    """A base model's tensor as it is published: floats in the format `code`, others as they are."""
    return TensorInfo(code if base.code in CONVERTED else base.code, base.shape)


def arrange(infos: Mapping[str, TensorInfo]) -> tuple[bytes, list[Place]]:
    """The file's first bytes, and where each tensor follows, in order. All codes must be of WIDTHS."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, places = 0, []
    for name in sorted(infos, key=lambda name: (_ORDER.index(infos[name].code), name.encode())):
        code, shape = infos[name]
        size = math.prod(shape) * WIDTHS[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
        places.append(Place(name, infos[name], offset, size))
        offset += size
    body = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8)
    data_start = 8 + len(body)
    placed = [place._replace(start=data_start + place.start) for place in places]
    return len(body).to_bytes(8, "little") + body, placed
