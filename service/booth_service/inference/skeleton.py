"""A base model's live pipeline on the device, and whose weights are in it: models are copied in, modules stay."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from booth_service.diffusion.components import family_of, live_name, weight_files
from booth_service.errors import BadWeights
from booth_service.inference.weights import Weights, pack, packed_bytes, shapes_of
from booth_service.inference.weights_cache import Shelf

logger = logging.getLogger(__name__)

Composition = Mapping[str, str]
"""A model: for each trained component the name under which its weights are kept."""


def base_entry(base: str, component: str) -> str:
    """The name under which a base model's own weights of a component are kept."""
    return f"{base}/{component}"


def is_published(name: str) -> bool:
    """True where this is the name of a published model's weights, not of a base model's."""
    return "/" not in name


class Skeleton:
    """A base model's pipeline. `live` says whose weights each trained component holds; None: nobody's, whole.

    Not thread-safe: whoever draws with it has the device's lock.
    """

    def __init__(self, base: str, folder: Path, pipeline: Any) -> None:
        self.base, self.folder, self.pipeline = base, folder, pipeline
        self.components = family_of(folder).trained_folders(train_text_encoder=True)
        self.live: dict[str, str | None] = {each: base_entry(base, each) for each in self.components}
        self._states: dict[str, dict[str, Tensor]] = {
            each: getattr(pipeline, each).state_dict() for each in self.components
        }
        self._needed = {each: self._base_names(each) for each in self.components}

    @property
    def side_unit_px(self) -> int:
        """Pixels that widths and heights must be multiples of: a cell of the UNet's lowest level."""
        levels = len(self.pipeline.unet.config.block_out_channels)
        return int(self.pipeline.vae_scale_factor * 2 ** (levels - 1))

    def composition(self, name: str, changed: Sequence[str]) -> Composition:
        """The model of this name whose own components are `changed`; the others are the base model's.

        Raises BadWeights where a changed one is not among those that jobs train.
        """
        if unknown := set(changed) - set(self.components):
            raise BadWeights(f"the model changes {', '.join(sorted(unknown))}, which its base model does not train")
        return {each: name if each in changed else base_entry(self.base, each) for each in self.components}

    @torch.no_grad()
    def fill(self, component: str, name: str, tensors: Mapping[str, Tensor]) -> None:
        """The component holds these weights, at the addresses that it always had.

        A copy that fails half-way leaves it nobody's. Raises BadWeights, and nothing is copied, where a tensor is
        missing or has another shape.
        """
        pairs = self._pairs(component, tensors)
        self.live[component] = None
        with _one_thread(pairs):
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs], non_blocking=True)
        self._wait()
        self.live[component] = name

    @torch.no_grad()
    def blank(self, name: str) -> None:
        """No value of the weights of this name is left in any component, nor of a copy that failed."""
        for component, live in self.live.items():
            if live in (name, None):
                self.live[component] = None
                torch._foreach_zero_(list(self._weights(component).values()))
        self._wait()

    def weights_of(self, name: str) -> Weights:
        """The live weights of this name, by their names in the loaded modules."""
        return {component: self._weights(component) for component, live in self.live.items() if live == name}

    def _weights(self, component: str) -> dict[str, Tensor]:
        return {name: self._states[component][name] for name in self._needed[component]}

    def _pairs(self, component: str, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Every live tensor with its new value."""
        state = self._states[component]
        found = {target: tensor for name, tensor in tensors.items() if (target := live_name(name, state)) is not None}
        if missing := self._needed[component] - found.keys():
            raise BadWeights(f"the weights of {component} lack {min(missing)} and {len(missing) - 1} more tensors")
        for name, tensor in found.items():
            if tensor.shape != state[name].shape:
                shapes = f"shape {tuple(tensor.shape)}, the base model's {tuple(state[name].shape)}"
                raise BadWeights(f"the weights of {component} have {name} in {shapes}")
        return [(state[name], tensor) for name, tensor in found.items()]

    def _base_names(self, component: str) -> set[str]:
        """Names in the loaded module of what the base model's files bring."""
        names: set[str | None] = set()
        for path in weight_files(self.folder, component):
            with safe_open(self.folder / path, framework="pt") as file:
                names |= {live_name(name, self._states[component]) for name in file.keys()}  # noqa: SIM118
        return {name for name in names if name is not None}

    def _wait(self) -> None:
        """Copies are over, or have raised."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize()


class Slots:
    """Copies of models on the device itself, the least recently used dropped first. Not thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self._shelf = Shelf(capacity_bytes)

    def __contains__(self, name: str) -> bool:
        return name in self._shelf.entries

    def names(self) -> list[str]:
        return list(self._shelf.entries)

    def find(self, name: str) -> Weights | None:
        entry = self._shelf.find(name)
        return entry.weights if entry else None

    @torch.no_grad()
    def keep(self, name: str, live: Weights) -> None:
        """A copy of these live weights is kept, where it fits at all."""
        sizes = {component: packed_bytes(shapes_of(tensors)) for component, tensors in live.items()}
        total = sum(sizes.values())
        if name in self or total > self._shelf.capacity_bytes or not self._shelf.make_room(total):
            return
        copies: dict[str, dict[str, Tensor]] = {}
        try:
            for component, tensors in live.items():
                device = next(iter(tensors.values())).device
                memory = torch.empty(sizes[component], dtype=torch.uint8, device=device)
                copies[component] = pack(shapes_of(tensors), memory)
                torch._foreach_copy_(list(copies[component].values()), list(tensors.values()))
        except torch.OutOfMemoryError as error:
            self._shelf.bytes -= total
            logger.warning("the device has no room for a model beside the one it draws with: %s", error)
            return
        self._shelf.put(name, copies, total)

    def drop(self, name: str) -> None:
        self._shelf.drop(name)


@contextmanager
def _one_thread(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Between host memories one thread copies as fast as several, and hundreds of parallel regions are slow."""
    threads = torch.get_num_threads()
    is_host = all(target.device.type == "cpu" for target, _ in pairs)
    try:
        if is_host:
            torch.set_num_threads(1)
        yield
    finally:
        if is_host:
            torch.set_num_threads(threads)
