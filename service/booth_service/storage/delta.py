"""Differences of chunks to a reference, as `booth.contract.delta` describes them, at the speed of memory."""

from collections.abc import Sequence

import numpy as np
from backports import zstd
from backports.zstd import CompressionParameter, Strategy
from numpy.typing import NDArray

from booth.contract.delta import BIAS, planes

Buffer = bytes | bytearray | memoryview
Lanes = NDArray[np.uint16]

_BLOCK_LANES = 1 << 16  # what numpy passes over several times stays in a core's cache

# There is nothing to find in noise but runs of zeros, and Huffman codes do the rest: a long shortest match and a table
# of 64 entries make it faster than level 1 and a few thousandths smaller (C8 measures both).
_PACKING: dict[int, int] = {
    CompressionParameter.compression_level: 1,
    CompressionParameter.strategy: Strategy.fast,
    CompressionParameter.min_match: 7,
    CompressionParameter.hash_log: 6,
    CompressionParameter.window_log: 20,
}


def encode(chunk: Buffer, reference: Buffer) -> bytes:
    """The stored form of a chunk. Raises ValueError where the reference chunk has another length."""
    return zstd.compress(differences(chunk, reference), options=_PACKING)


def differences(chunk: Buffer, reference: Buffer) -> memoryview:
    """All low bytes and then all high bytes of chunk - reference + 128, uncompressed."""
    if len(chunk) != len(reference):
        raise ValueError(f"a chunk of {len(chunk)} bytes has no difference to a reference of {len(reference)}")
    ours, theirs = _lanes(chunk), _lanes(reference)
    out: NDArray[np.uint8] = np.empty(2 * len(ours), np.uint8)
    low, high = out[: len(ours)], out[len(ours) :]
    for start in range(0, len(ours), _BLOCK_LANES):
        block = slice(start, start + _BLOCK_LANES)
        difference = ours[block] - theirs[block]
        difference += BIAS
        np.copyto(low[block], difference, casting="unsafe")  # keeps the low byte
        difference >>= 8
        np.copyto(high[block], difference, casting="unsafe")
    return out.data


def decode_into(stored: bytes, reference: Buffer, out: memoryview) -> None:
    """Write the chunk's bytes to `out`, which has the reference's length. Raises DeltaBroken."""
    if len(out) != len(reference):
        raise ValueError(f"{len(out)} bytes of room for a chunk of {len(reference)}")
    unpacked = np.frombuffer(planes(stored, len(reference)), np.uint8)
    theirs = _lanes(reference)
    low, high = unpacked[: len(theirs)], unpacked[len(theirs) :]
    is_odd = len(out) % 2
    whole: Lanes = np.empty(len(theirs), "<u2") if is_odd else np.frombuffer(out, "<u2")
    for start in range(0, len(theirs), _BLOCK_LANES):
        block = slice(start, start + _BLOCK_LANES)
        total = whole[block]
        np.copyto(total, high[block])
        total <<= 8
        total |= low[block]
        total -= BIAS
        total += theirs[block]
    if is_odd:
        out[:] = whole.view(np.uint8).data[: len(out)]


def decode(stored: bytes, reference: Buffer) -> bytearray:
    """The chunk's bytes. Raises DeltaBroken."""
    out = bytearray(len(reference))
    decode_into(stored, reference, memoryview(out))
    return out


def stored_share(samples: Sequence[tuple[Buffer, Buffer]]) -> float:
    """The share of its own bytes that a file's difference would take, judged by some chunks and their references."""
    return sum(len(encode(chunk, reference)) for chunk, reference in samples) / sum(len(chunk) for chunk, _ in samples)


def _lanes(data: Buffer) -> Lanes:
    """Little-endian 16-bit lanes; an odd last byte becomes a lane with high byte 0."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    return np.frombuffer(data, "<u2")
