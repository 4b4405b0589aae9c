"""A published file's bytes are known before there are any: header, offsets, parts."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from booth.contract.digests import part_ranges
from booth_service.errors import BadWeights
from booth_service.publish.layout import FileLayout, lay_out, own_parts, part_bytes_of
from booth_service.storage.tensor_layout import TensorInfo

CODES = {
    "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F64": torch.float64,
}  # fmt: skip
FLOATS = {"F32", "BF16", "F16", "F64"}
PATH = Path("unet/x.safetensors")


def laid_out(infos: dict[str, TensorInfo], dtype: torch.dtype = torch.float16) -> FileLayout:
    trained = {name: torch.Size(info.shape) for name, info in infos.items() if info.code in FLOATS}
    return lay_out(PATH, infos, trained, dtype)


@given(
    st.dictionaries(
        st.text('abcé"_0', min_size=1, max_size=6),
        st.tuples(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
        max_size=8,
    ),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_the_header_is_the_one_that_safetensors_writes(
    drawn: dict[str, tuple[str, tuple[int, ...]]], dtype: torch.dtype
) -> None:
    infos = {"first": TensorInfo("F32", (2, 3)), **{name: TensorInfo(*info) for name, info in drawn.items()}}
    layout = laid_out(infos, dtype)
    whole = {
        name: torch.ones(shape, dtype=dtype if code in FLOATS else CODES[code]) for name, (code, shape) in infos.items()
    }
    written = save(whole, metadata={"format": "pt"})
    assert written[: len(layout.header)] == layout.header
    assert layout.total_bytes == len(written)
    for slot in layout.slots:
        values = whole[slot.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert written[slot.start : slot.start + slot.bytes] == values


@given(st.integers(1, 400), st.integers(0, 5000))
def test_slots_of_a_range_are_those_that_overlap_it(length: int, start: int) -> None:
    layout = laid_out({f"t{k:02d}": TensorInfo("F32", (k % 4, 7)) for k in range(40)})
    start %= layout.total_bytes
    length = min(length, layout.total_bytes - start)
    got = {slot.name: (slot.start + first, slot.start + end) for slot, first, end in layout.slots_in(start, length)}
    for slot in layout.slots:
        first, end = max(start, slot.start), min(start + length, slot.start + slot.bytes)
        assert got.get(slot.name) == ((first, end) if first < end else None)


@pytest.mark.parametrize("total", [1, 5 * 2**20, 40 * 2**20, 2 * 10**9, 10**12, 5 * 10**12])
def test_parts_are_what_s3_takes(total: int) -> None:
    parts = part_ranges(total, part_bytes_of(total))
    assert len(parts) <= 10_000
    assert all(length >= 5 * 2**20 for _, length in parts[:-1])
    assert sum(length for _, length in parts) == total
    assert part_bytes_of(total) <= max(32 * 2**20, math.ceil(total / 10_000) + 2**20)


@given(st.integers(1, 200), st.integers(1, 16))
def test_ranks_own_contiguous_runs_that_make_up_all_parts(parts: int, ranks: int) -> None:
    runs = [own_parts(parts, rank, ranks) for rank in range(ranks)]
    assert list(itertools.chain(*runs)) == list(range(parts))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_every_rank_owns_parts_of_40_mib() -> None:
    parts = len(part_ranges(40 * 2**20, part_bytes_of(40 * 2**20)))
    assert [len(own_parts(parts, rank, 4)) for rank in range(4)] == [2] * 4


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({"a.weight": (3,)}, r"a.weight has shape \(3,\), the base \(2,\)"),
        ({"other": (2,)}, "none of its 3 tensors is among the trained ones"),
        ({"weight": (2,)}, "several of its tensors are the trained weight"),
        ({"odd": (2,)}, "odd has values of format F4, which are not published"),
    ],
)
def test_what_does_not_fit_is_refused(trained: dict[str, tuple[int, ...]], said: str) -> None:
    base = {"a.weight": TensorInfo("F32", (2,)), "b.weight": TensorInfo("F32", (2,)), "odd": TensorInfo("F4", (2,))}
    with pytest.raises(BadWeights, match=said):
        lay_out(PATH, base, {name: torch.Size(shape) for name, shape in trained.items()}, torch.float16)
