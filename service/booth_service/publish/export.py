"""The bytes of any range of a published file, from what the ranks hold of the trained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from booth_service.diffusion.components import live_name, weight_files
from booth_service.diffusion.placeholder import row_of
from booth_service.errors import BadWeights
from booth_service.publish.layout import FileLayout, Slot, lay_out
from booth_service.storage.tensor_layout import TensorInfo


class TrainedWeights(Protocol):
    """What a rank holds of the trained weights; names are "component.name in the loaded module".

    All ranks have the same shapes and the same answers of `live` but for the values' place.
    """

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        ...

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of every trained tensor."""
        ...

    def live(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The whole tensor, 1-D, where this rank holds values that cast to `dtype` as the fp32 masters do."""
        ...

    def fragment(self, name: str) -> tuple[int, Tensor] | None:
        """First element and 1-D fp32 values of this rank's piece of the masters; the ranks' pieces make up all."""
        ...


class Pieces:
    """Fills byte ranges of one file. `layout` says what goes where."""

    def __init__(self, layout: FileLayout, component: str, base_file: Path, weights: TrainedWeights) -> None:
        self.layout, self._component, self._weights = layout, component, weights
        self._base: Any = safe_open(base_file, framework="pt")

    @property
    def is_local(self) -> bool:
        """True where this rank, and so every one, can fill every range alone."""
        trained = [slot.trained for slot in self.layout.slots if slot.trained is not None]
        return all(self._weights.live(self._name(name), self.layout.dtype) is not None for name in trained)

    def fill_trained(self, out: Tensor, start: int, from_fragments: bool) -> None:
        """Put into `out`, uint8 (n,) for the file's bytes [start, start + n), what this rank holds of the trained ones.

        Raises BadWeights where a value is not finite in the file's format.
        """
        for slot, first, end in self.layout.slots_in(start, len(out)):
            if slot.trained is None:
                continue
            begin, values = 0, None
            if not from_fragments:
                values = self._weights.live(self._name(slot.trained), self.layout.dtype)
            elif (held := self._weights.fragment(self._name(slot.trained))) is not None:
                begin, values = held
            if values is not None:
                self._put(out, start, slot, first, end, slot.first_trained + begin, values)

    def fill_rest(self, out: Tensor, start: int) -> None:
        """Put into `out` what is the same whoever trained: the header, and the base file's own tensors."""
        header = self.layout.header[start : start + len(out)]
        if header:
            out[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        for slot, first, end in self.layout.slots_in(start, len(out)):
            begin, beyond = slot.trained_bytes
            for own_first, own_end in ((first, min(end, begin)), (max(first, beyond), end)):
                if own_first < own_end:
                    self._put_base(out, start, slot, own_first, own_end)

    def _put_base(self, out: Tensor, start: int, slot: Slot, first: int, end: int) -> None:
        """Put into `out` the slot's bytes [first, end) as the base file has them."""
        tensor = self._base.get_tensor(slot.name).contiguous().view(-1)
        if slot.is_converted:
            self._put(out, start, slot, first, end, 0, tensor)
        else:
            at = slot.start + first - start
            out[at : at + end - first] = tensor.view(torch.uint8)[first:end]

    def _put(self, out: Tensor, start: int, slot: Slot, first: int, end: int, begin: int, values: Tensor) -> None:
        """Cast into `out` the slot's bytes [first, end), as far as `values`, elements from `begin` on, have them."""
        first, end = max(first, begin * slot.width), min(end, (begin + len(values)) * slot.width)
        if first >= end:
            return
        at = slot.start + first - start
        place = out[at : at + end - first].view(self.layout.dtype)
        place.copy_(values[first // slot.width - begin : end // slot.width - begin])
        least, most = torch.aminmax(place)  # NaN goes through both
        if not (torch.isfinite(least) and torch.isfinite(most)):
            kind = str(self.layout.dtype).removeprefix("torch.")
            raise BadWeights(f"{self.layout.path}: {slot.name} holds values that are not finite in {kind}")

    def _name(self, trained: str) -> str:
        return f"{self._component}.{trained}"


def pieces_of(weights: TrainedWeights, base_folder: Path, dtype: torch.dtype) -> list[Pieces]:
    """Every file that training changed, components in the order of the trained names.

    Where rows alone were trained these are the files with their tensors. Raises BadWeights where a file does not take
    the trained tensors, or a trained tensor is in no file.
    """
    components: dict[str, dict[str, torch.Size]] = {}
    for whole_name, shape in weights.shapes.items():
        component, name = whole_name.split(".", 1)
        components.setdefault(component, {})[name] = shape
    found = []
    for component, shapes in components.items():
        bases = {path: tensors_of(base_folder / path) for path in weight_files(base_folder, component)}
        whole = [place[0] for name in shapes if (place := row_of(name))]
        if len(whole) == len(shapes):
            bases = {path: base for path, base in bases.items() if any(live_name(name, whole) for name in base)}
        layouts = [lay_out(path, base, shapes, dtype) for path, base in bases.items()]
        stored = {slot.trained for layout in layouts for slot in layout.slots}
        if missing := sorted(shapes.keys() - stored):
            raise BadWeights(f"{component}: {len(missing)} trained tensors are in no file, such as {missing[0]}")
        found += [Pieces(layout, component, base_folder / layout.path, weights) for layout in layouts]
    return found


def tensors_of(path: Path) -> dict[str, TensorInfo]:
    """Formats and shapes of a local safetensors file, from its header."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        return {name: TensorInfo(piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
