"""The models at hand: brought near beside generation, copied into the live modules when their turn has come."""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch

from booth.contract.attempts import Manifest, StoredFile
from booth.contract.ip_adapter import EMBEDS, FOLDER, is_weights
from booth.contract.serving import ModelRef
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.image_prompt import Adapter, ImagePrompt, load_adapter
from booth_service.errors import ObjectMissing, ServiceError
from booth_service.inference.batching import Standing
from booth_service.inference.flights import Flights
from booth_service.inference.skeleton import Composition, Skeleton, Slots, base_entry, is_published
from booth_service.inference.weights import (
    Weights,
    base_component,
    base_component_bytes,
    changed_components,
    published_weights,
    read_manifest,
)
from booth_service.inference.weights_cache import Load, WeightsCache
from booth_service.storage.base_model import content_sha256, materialize
from booth_service.storage.s3 import ObjectStore


def name_of(model: ModelRef) -> str:
    """The name under which a model is known to an engine: its manifest's hash, or the base model's content's."""
    return model.manifest_sha256 or content_sha256(model.base_files)


@dataclass(frozen=True)
class Photo:
    """A model that is a photo beside the prompt: the name under which its embeddings are kept, and how it is drawn."""

    name: str
    adapter: Adapter
    scale: float


@dataclass(frozen=True)
class Known:
    """A model that was brought once: its base's pipeline, and where each component's weights come from."""

    skeleton: Skeleton
    composition: Composition
    photo: Photo | None = None

    def names(self) -> set[str]:
        """The names of all that is kept for it."""
        return {*self.composition.values(), *([self.photo.name] if self.photo else [])}

    def to_copy(self) -> dict[str, str]:
        """Component -> name, of those whose live weights are others."""
        live = self.skeleton.live
        return {component: name for component, name in self.composition.items() if live[component] != name}


@dataclass(frozen=True)
class Held:
    """A model whose weights in host memory stay until they are released."""

    name: str
    known: Known
    weights: dict[str, Weights]

    @property
    def image_prompt(self) -> ImagePrompt | None:
        """The photo that its pictures are drawn with, if there is one."""
        if (photo := self.known.photo) is None:
            return None
        return ImagePrompt(photo.adapter, self.weights[photo.name][FOLDER][EMBEDS], photo.scale)


class Models:
    """Every model is in one of four places: live, in a device slot, in host memory, or in the object store alone.

    `bring`, `known`, `failure`, `want` and `forget` are for any thread, the rest for the one that draws. `device_lock`
    is held by whoever uses the device or its live modules.
    """

    def __init__(
        self,
        store: ObjectStore,
        device: str,
        cache: WeightsCache,
        slots: Slots,
        *,
        bad_memory_s: float,
        scratch_dir: str | None,
    ) -> None:
        self.store, self.device, self.scratch_dir = store, device, scratch_dir
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        self.cache, self.slots = cache, slots
        self.device_lock = threading.Lock()
        self._skeletons: dict[str, Skeleton] = {}
        self._known: dict[str, Known] = {}
        self._flights: Flights[None] = Flights(bad_memory_s)
        self._base_flights: Flights[Skeleton] = Flights(bad_memory_s)
        self._adapters: dict[str, Adapter] = {}
        self._adapter_flights: Flights[Adapter] = Flights(bad_memory_s)

    def failure(self, name: str) -> ServiceError | None:
        """Why the model could not be had a short while ago."""
        return self._flights.failure(name)

    def bring(self, model: ModelRef) -> None:
        """The model is at hand: its own weights are in host memory, or a base model's live.

        Raises StorageError, BadWeights or BaseModelError, also from memory.
        """
        name = name_of(model)
        self._flights.once(name, lambda: self._bring(name, model))

    def known(self, name: str) -> Known | None:
        """The model, where it has been brought, at hand or not."""
        return self._known.get(name)

    def want(self, names: Collection[str]) -> None:
        """Rows wait for these models, so that others make room before them."""
        known = [self._known[name] for name in names if name in self._known]
        self.cache.want({each for one in known for each in one.names()})

    def held(self) -> list[str]:
        """The published models of which weights are here, wherever."""
        names = {name for skeleton in list(self._skeletons.values()) for name in skeleton.live.values() if name}
        return sorted(name for name in names.union(self.cache.names(), self.slots.names()) if is_published(name))

    def standing(self, name: str) -> Standing | None:
        """How near the model's weights are; None where some are not at hand."""
        known = self._known.get(name)
        if known is None or self.cache.is_forgotten(name):
            return None
        if known.photo is not None and known.photo.name not in self.cache:
            return None
        nearest = Standing.LIVE
        for its in known.to_copy().values():
            if its in self.slots:
                nearest = min(nearest, Standing.DEVICE)
            elif its in self.cache:
                nearest = Standing.HOST
            else:
                return None
        return nearest

    def hold(self, name: str) -> Held | None:
        """The model with what activating it needs; None where that has gone meanwhile."""
        known = self._known[name]
        names = [its for its in dict.fromkeys(known.to_copy().values()) if its not in self.slots]
        names += [known.photo.name] if known.photo else []
        self.cache.touch(known.names())  # or a model that is live for long would be dropped as unused
        weights = self.cache.hold(names)
        return None if weights is None else Held(name, known, dict(zip(names, weights, strict=True)))

    def release(self, held: Held) -> None:
        """Its weights may go."""
        self.cache.release(list(held.weights))

    def activate(self, held: Held) -> bool:
        """The live modules hold the model's weights, at their old addresses. True where anything was copied.

        Raises ObjectMissing where the model was deleted meanwhile, BadWeights where its weights do not fit.
        """
        if self.cache.is_forgotten(held.name):
            raise ObjectMissing(f"model {held.name} was deleted")
        skeleton, to_copy = held.known.skeleton, held.known.to_copy()
        for component, name in to_copy.items():
            weights = self.slots.find(name) or held.weights[name]
            skeleton.fill(component, name, weights[component])
        for name in dict.fromkeys(its for its in to_copy.values() if its in held.weights):
            self.slots.keep(name, skeleton.weights_of(name))
        return bool(to_copy)

    def forget(self, name: str) -> None:
        """No copy of the model's weights is left, and none will be made. Waits for the batch that is being drawn."""
        self.cache.forget(name)
        with self.device_lock:
            self.slots.drop(name)
            for skeleton in list(self._skeletons.values()):
                skeleton.blank(name)

    def _bring(self, name: str, model: ModelRef) -> None:
        if self.cache.is_forgotten(name):
            raise ObjectMissing(f"model {model.model_id} was deleted")
        skeleton = self._skeleton(model)
        loads: list[Load] = []
        changed: list[str] = []
        photo = None
        if model.manifest_key is not None and model.manifest_sha256 is not None:
            manifest = read_manifest(self.store, model.manifest_key, model.manifest_sha256)
            changed = [component for component in changed_components(manifest) if component != FOLDER]
            photo = self._photo(name, skeleton, manifest)
            loads.append(self._load_published(name, manifest))
        known = Known(skeleton, skeleton.composition(name, changed), photo)
        loads += [
            self._load_base(skeleton, component)
            for component, its in known.to_copy().items()
            if component not in changed
        ]
        self._known[name] = known
        self.cache.load(loads)

    def _load_published(self, name: str, manifest: Manifest) -> Load:
        read = partial(
            published_weights, self.store, manifest, self.scratch_dir, dtype=self.dtype, pinned=self._is_pinned
        )
        return Load(name, sum(file.bytes for file in manifest.changed), read)

    def _load_base(self, skeleton: Skeleton, component: str) -> Load:
        def read() -> Weights:
            return {component: base_component(skeleton.folder, component, self.dtype, pinned=self._is_pinned)}

        size = base_component_bytes(skeleton.folder, component, self.dtype)
        return Load(base_entry(skeleton.base, component), size, read)

    def _photo(self, name: str, skeleton: Skeleton, manifest: Manifest) -> Photo | None:
        """How the model is drawn, where it is a photo and no weights. Raises StorageError, BaseModelError."""
        files = [file for file in manifest.unchanged if is_weights(file.path)]
        if not files:
            return None
        of = f"{skeleton.base}/{content_sha256(files)}"
        adapter = self._adapters.get(of) or self._adapter_flights.once(of, lambda: self._attached(of, skeleton, files))
        return Photo(name, adapter, manifest.params.ip_adapter_scale)

    def _attached(self, of: str, skeleton: Skeleton, files: list[StoredFile]) -> Adapter:
        """The adapter of these files for the skeleton's UNet, on its device. Nothing is drawn while it is read."""
        folder = materialize(self.store, files, self.scratch_dir)
        with self.device_lock:
            self._adapters[of] = load_adapter(skeleton.pipeline, folder)
        return self._adapters[of]

    @property
    def _is_pinned(self) -> bool:
        return self.device == "cuda"

    def _skeleton(self, model: ModelRef) -> Skeleton:
        base = content_sha256(model.base_files)
        return self._skeletons.get(base) or self._base_flights.once(base, lambda: self._built(base, model))

    def _built(self, base: str, model: ModelRef) -> Skeleton:
        """The pipeline of the model's base on the device. Raises StorageError, BaseModelError.

        While a pipeline is read nothing is drawn: the libraries set torch's default dtype for the whole process.
        """
        folder = materialize(self.store, model.base_files, self.scratch_dir)
        with self.device_lock:
            pipeline = load_pipeline(folder, self.dtype)
        self._skeletons[base] = Skeleton(base, folder, pipeline.to(self.device))
        return self._skeletons[base]
