"""A chunk of a file as its lossless difference to the same chunk of a reference file.

A fine-tune moves most half-precision weights by few units in the last place. Both chunks are read as little-endian
16-bit lanes (an odd last byte is a lane of its own, its high byte 0); a lane's difference, file - reference + 128
modulo 2^16, then lies in 0..255 for most of them. All low bytes, after them all high bytes, as one zstd frame, are what
is stored. Any bytes come back as they were: NaN payloads, -0, other dtypes and headers are lanes like others.

Decoding is here without numpy, for clients; `booth_service.storage.delta` encodes, and decodes faster.
"""

from functools import lru_cache

from backports import zstd

CODING = "lanes16-zstd"  # a reader refuses any other
BIAS = 128  # small differences of both signs have high byte 0
_BLOCK_BYTES = 1 << 16  # integers of this size stay in a core's cache


class DeltaBroken(ValueError):
    """What is stored is no difference of the expected length."""


def decode(stored: bytes, reference: bytes) -> bytes:
    """The chunk's bytes, as many as the reference chunk has. Raises DeltaBroken.

    A wrong reference is not noticed here: compare the result's digest.
    """
    return add_lanes(planes(stored, len(reference)), reference)


def planes(stored: bytes, total_bytes: int) -> bytes:
    """The low bytes and then the high bytes of all differences: twice (total_bytes + 1) // 2. Raises DeltaBroken.

    Never unpacks more than it was told to expect.
    """
    expected = total_bytes + total_bytes % 2
    try:
        unpacker = zstd.ZstdDecompressor()
        unpacked = unpacker.decompress(stored, max_length=expected + 1)
    except zstd.ZstdError as error:
        raise DeltaBroken(f"a stored difference is no zstd frame: {error}") from None
    if len(unpacked) != expected or not unpacker.eof or unpacker.unused_data:
        raise DeltaBroken(f"a stored difference of {len(stored)} bytes does not unpack to {expected} bytes exactly")
    return unpacked


def add_lanes(differences: bytes, reference: bytes) -> bytes:
    """reference + difference - 128 in every 16-bit lane; `differences` as `planes` gives them.

    Python's integers are the vector registers: one addition is 32768 lanes wide.
    """
    half = len(differences) // 2
    out = bytearray(2 * half)
    lanes = bytearray(_BLOCK_BYTES)
    for start in range(0, 2 * half, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, 2 * half - start)
        if size < len(lanes):
            lanes = bytearray(size)
        first, last = start // 2, (start + size) // 2
        lanes[0::2] = differences[first:last]
        lanes[1::2] = differences[half + first : half + last]
        here = int.from_bytes(reference[start : start + size], "little")
        total = _add(_add(here, int.from_bytes(lanes, "little"), size), _every_lane(0x10000 - BIAS, size), size)
        out[start : start + size] = total.to_bytes(size, "little")
    return bytes(memoryview(out)[: len(reference)])


def _add(one: int, other: int, size: int) -> int:
    """The sum in each of the size // 2 lanes, modulo 2^16: top bits apart, so that no carry leaves its lane."""
    top, below = _every_lane(0x8000, size), _every_lane(0x7FFF, size)
    return ((one & below) + (other & below)) ^ ((one ^ other) & top)


@lru_cache(maxsize=8)
def _every_lane(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(2, "little") * (size // 2), "little")
