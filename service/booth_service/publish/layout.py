"""Where every byte of a published file lies and whose it is, before any of it is there; and its parts."""

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from booth.contract.digests import part_ranges
from booth_service.diffusion.components import live_name
from booth_service.diffusion.placeholder import row_of
from booth_service.errors import BadWeights
from booth_service.storage.tensor_layout import CODES, CONVERTED, WIDTHS, TensorInfo, arrange, published_info

_MIB = 2**20
LEAST_PART_BYTES = 5 * _MIB  # S3's own limit, but for a file's last part
MOST_PART_BYTES = 32 * _MIB
_PARTS_AIMED_AT, _MOST_PARTS = 64, 10_000


@dataclass(frozen=True)
class Slot:
    """One tensor's place: bytes [start, start + bytes) of the file.

    `trained` is the name of the trained tensor that it holds; None: the base file's own. Where that is one `row` of it,
    the others are the base file's.
    """

    name: str
    info: TensorInfo
    start: int
    bytes: int
    trained: str | None
    row: int | None = None

    @property
    def is_converted(self) -> bool:
        """True where the values are floats in the format asked for; others are as in the base file."""
        return self.info.code in CONVERTED

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return WIDTHS[self.info.code]

    @property
    def first_trained(self) -> int:
        """The element, of all of the tensor's, that the trained tensor's first one is."""
        return 0 if self.row is None else self.row * math.prod(self.info.shape[1:])

    @property
    def trained_bytes(self) -> tuple[int, int]:
        """First and end of the slot's bytes that are trained."""
        if self.trained is None:
            return 0, 0
        if self.row is None:
            return 0, self.bytes
        first = self.first_trained * self.width
        return first, first + math.prod(self.info.shape[1:]) * self.width


@dataclass(frozen=True)
class FileLayout:
    """One published file: its header's bytes, then its tensors in order."""

    path: Path
    header: bytes
    slots: tuple[Slot, ...]
    dtype: torch.dtype
    _starts: list[int] = field(repr=False)

    @property
    def total_bytes(self) -> int:
        """The whole file's."""
        return self.slots[-1].start + self.slots[-1].bytes if self.slots else len(self.header)

    @property
    def part_bytes(self) -> int:
        """Of every part but the last."""
        return part_bytes_of(self.total_bytes)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """(start, length) of every part."""
        return part_ranges(self.total_bytes, self.part_bytes)

    def slots_in(self, start: int, length: int) -> Iterator[tuple[Slot, int, int]]:
        """Every slot of which bytes lie in [start, start + length), with the first and the end of those bytes,
        counted from the slot's own start."""
        end = start + length
        for slot in self.slots[max(0, bisect.bisect_right(self._starts, start) - 1) :]:
            if slot.start >= end:
                return
            first, last = max(0, start - slot.start), min(slot.bytes, end - slot.start)
            if first < last:
                yield slot, first, last


def part_bytes_of(total_bytes: int) -> int:
    """The part size of a file: of its size alone, so that digests do not depend on who uploads. Whole MiB.

    Some 64 parts, so that 8 ranks have 8 requests each on their way; 5 to 32 MiB, for beyond that requests cost
    nothing; more only where S3's 10,000 parts would not do.
    """
    aimed = math.ceil(total_bytes / _PARTS_AIMED_AT / _MIB) * _MIB
    needed = math.ceil(total_bytes / _MOST_PARTS / _MIB) * _MIB
    return max(min(max(aimed, LEAST_PART_BYTES), MOST_PART_BYTES), needed)


def own_parts(num_parts: int, rank: int, ranks: int) -> range:
    """The contiguous run of a file's parts (from 0) that a rank uploads: 1/ranks of them, to one."""
    return range(rank * num_parts // ranks, (rank + 1) * num_parts // ranks)


def lay_out(
    path: Path, base: Mapping[str, TensorInfo], trained: Mapping[str, torch.Size], dtype: torch.dtype
) -> FileLayout:
    """The base file at `path` with every trained tensor in place of its own, floats in `dtype`.

    `trained` are named as in the loaded module; a row of a tensor has a name that `placeholder.row_of` reads. What they
    lack (layers that are not trained, position ids of old text encoders) is the base's, so that every program that
    reads the base folder reads this one. Raises BadWeights where a shape differs, two tensors of the file are one
    trained one, or none is.
    """
    rows = {place[0]: (name, place[1]) for name in trained if (place := row_of(name))}
    sources, numbers = _sources(base, trained, rows)
    used = Counter(source for source in sources.values() if source is not None)
    if not used:
        raise BadWeights(f"{path}: none of its {len(base)} tensors is among the trained ones")
    if doubled := [source for source, count in used.items() if count > 1]:
        raise BadWeights(f"{path}: several of its tensors are the trained {', '.join(doubled)}")
    infos = {}
    for name, (code, shape) in base.items():
        source = sources[name]
        if source is not None and tuple(trained[source]) != _shape_trained(shape, numbers.get(name)):
            raise BadWeights(f"{path}: {name} has shape {tuple(trained[source])}, the base {shape}")
        if code not in WIDTHS:
            raise BadWeights(f"{path}: {name} has values of format {code}, which are not published")
        infos[name] = published_info(base[name], CODES[str(dtype).removeprefix("torch.")])
    head, places = arrange(infos)
    slots = tuple(Slot(*place, sources[place.name], numbers.get(place.name)) for place in places)
    return FileLayout(path, head, slots, dtype, [slot.start for slot in slots])


def _sources(
    base: Mapping[str, TensorInfo], trained: Mapping[str, torch.Size], rows: Mapping[str, tuple[str, int]]
) -> tuple[dict[str, str | None], dict[str, int]]:
    """For each tensor of the file what is trained of it, and where that is one row, its number."""
    sources: dict[str, str | None] = {}
    numbers: dict[str, int] = {}
    for name in base:
        sources[name] = live_name(name, trained)
        if (whole := live_name(name, rows)) is not None:
            sources[name], numbers[name] = rows[whole]
    return sources, numbers


def _shape_trained(shape: tuple[int, ...], row: int | None) -> tuple[int, ...] | None:
    """What is trained of a tensor of this shape; None where it has no such row."""
    if row is None:
        return shape
    return (1, *shape[1:]) if shape and row < shape[0] else None
