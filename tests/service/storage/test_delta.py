"""The difference of a chunk to its reference: any bytes come back, by both decoders, and nothing else is taken."""

import numpy as np
import pytest
import torch
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from booth.contract import delta as light
from booth.contract.delta import DeltaBroken
from booth_service.storage import delta

# Bit patterns that arithmetic on floats would lose: NaNs with payloads, infinities, -0, subnormals, largest, smallest.
ODD_FP16 = [0x7C01, 0x7E55, 0xFFFF, 0xFE00, 0x7C00, 0xFC00, 0x8000, 0x0000, 0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF]
ODD_BF16 = [0x7F81, 0x7FC5, 0xFFFF, 0x7F80, 0xFF80, 0x8000, 0x0001, 0x8001, 0x007F, 0x7F7F, 0xFF7F]

lane = st.one_of(st.sampled_from(ODD_FP16 + ODD_BF16), st.integers(0, 0xFFFF))


@st.composite
def chunks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chunk and a reference of equal, often odd length; lanes far apart, near, and at the ends of the range."""
    pairs = draw(
        st.lists(st.tuples(lane, st.one_of(lane, st.integers(-130, 130).map(lambda d: ("near", d)))), max_size=70)
    )
    ours = b"".join(one.to_bytes(2, "little") for one, _ in pairs)
    theirs = b"".join(((one + o[1]) % 65536 if isinstance(o, tuple) else o).to_bytes(2, "little") for one, o in pairs)
    if draw(st.booleans()):
        last = st.integers(0, 255).map(lambda value: bytes([value]))
        ours, theirs = ours + draw(last), theirs + draw(last)
    return ours, theirs


@given(chunks())
def test_any_bytes_come_back_by_both_decoders(pair: tuple[bytes, bytes]) -> None:
    chunk, reference = pair
    stored = delta.encode(chunk, reference)
    assert delta.decode(stored, reference) == chunk
    assert light.decode(stored, reference) == chunk


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("total_bytes", [2 * 65536, 2 * 65536 + 2, 2 * 65536 + 1, 300_001, 1])
def test_weights_come_back_over_the_edges_of_the_decoders_blocks(dtype: torch.dtype, total_bytes: int) -> None:
    torch.manual_seed(0)
    masters = torch.randn(total_bytes // 2 + 1) * 0.03
    chunk, reference = (
        bits(each.to(dtype))[:total_bytes] for each in (masters + torch.randn_like(masters) * 1e-4, masters)
    )
    stored = delta.encode(chunk, reference)
    assert delta.decode(stored, reference) == light.decode(stored, reference) == chunk
    if total_bytes > 1000:
        assert len(stored) < 0.45 * total_bytes


def test_every_difference_of_two_lanes_is_undone() -> None:
    """All 65536 differences, against references at the ends and in the middle of the range."""
    ours = np.arange(65536, dtype="<u2").tobytes()
    for value in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        reference = value.to_bytes(2, "little") * 65536
        stored = delta.encode(ours, reference)
        assert delta.decode(stored, reference) == light.decode(stored, reference) == ours


def test_an_equal_chunk_is_next_to_nothing() -> None:
    chunk = bytes(range(256)) * 4096
    assert len(delta.encode(chunk, chunk)) < len(chunk) / 1000
    assert len(delta.encode(b"", b"")) < 20
    assert light.decode(delta.encode(b"", b""), b"") == b""


def test_the_format_is_what_its_docstring_says() -> None:
    """A stored file outlives the code that wrote it: low bytes, high bytes, biased by 128, one plain zstd frame."""
    stored = delta.encode(bytes([0x10, 0x00, 0xFF, 0x7F, 0x05]), bytes([0x11, 0x00, 0x00, 0x00, 0x05]))
    lanes = [0xFFFF + 128 - 0x10000, 0x7FFF + 128, 128]  # -1, 0x7FFF, 0
    expected = bytes(value & 255 for value in lanes) + bytes(value >> 8 for value in lanes)
    assert zstd.decompress(stored) == expected
    assert light.CODING == "lanes16-zstd"


def unended(content: bytes) -> bytes:
    """All of the content in whole blocks, but no last block."""
    packer = zstd.ZstdCompressor()
    return packer.compress(content, mode=zstd.ZstdCompressor.FLUSH_BLOCK)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not a frame",
        delta.encode(bytes(100), bytes(100))[:-1],
        delta.encode(bytes(100), bytes(100)) + b"x",
        delta.encode(bytes(98), bytes(98)),
        delta.encode(bytes(102), bytes(102)),
        zstd.compress(bytes(2**28)),  # would unpack to 256 MiB
        unended(bytes(100)),
    ],
    ids=["nothing", "no frame", "cut", "more behind it", "too short", "too long", "bomb", "without an end"],
)
@pytest.mark.parametrize("decode", [light.decode, delta.decode])
def test_what_is_no_difference_of_this_length_is_refused(decode, broken: bytes) -> None:
    with pytest.raises(DeltaBroken):
        decode(broken, bytes(100))


def test_chunks_of_other_lengths_than_the_reference_are_refused() -> None:
    with pytest.raises(ValueError, match="a chunk of 4 bytes has no difference to a reference of 6"):
        delta.encode(bytes(4), bytes(6))
    with pytest.raises(ValueError, match="4 bytes of room for a chunk of 6"):
        delta.decode_into(delta.encode(bytes(6), bytes(6)), bytes(6), memoryview(bytearray(4)))


def test_a_sample_says_what_the_whole_would_take() -> None:
    torch.manual_seed(0)
    masters = torch.randn(400_000) * 0.03
    ours, theirs = bits((masters + torch.randn_like(masters) * 1e-4).half()), bits(masters.half())
    whole = len(delta.encode(ours, theirs)) / len(ours)
    part = delta.stored_share([(ours[at : at + 65536], theirs[at : at + 65536]) for at in (0, 400_000)])
    assert part == pytest.approx(whole, abs=0.02)
    assert delta.stored_share([(np.random.default_rng(0).bytes(65536), bytes(65536))]) > 0.99


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.int16).numpy().tobytes()
