"""Drawing with many models: one pipeline skeleton per base model, weights copied in from a cache. No Ray in here."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from booth.contract.serving import DrawAnswer, Drawn, DrawRequest, ModelRef
from booth_service.diffusion.batch import Row, Setting, sample_batch
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.sampling import batches
from booth_service.inference.png import png_base64
from booth_service.inference.ticket import OnEvent, Ticket
from booth_service.inference.weights import Weights, WeightsCache, base_weights, copy_into, published_weights
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore


@dataclass
class Skeleton:
    """A base model's pipeline on the device, and whose weights are in it now (None: nobody's, whole)."""

    pipeline: Any
    active: str | None


class Engine:
    """Draws on one device. Requests may come from any thread; sampling happens one batch at a time."""

    def __init__(
        self, store: ObjectStore, device: str, cache_bytes: int, batch_size: int, scratch_dir: str | None = None
    ) -> None:
        self.store, self.device, self.batch_size, self.scratch_dir = store, device, batch_size, scratch_dir
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        self.cache = WeightsCache(cache_bytes)
        self._skeletons: dict[Path, Skeleton] = {}
        self._device_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="engine")

    def submit(self, request: DrawRequest, on_event: OnEvent | None = None) -> Ticket:
        """The request waits for its turn. Raises EngineBusy where too many do.

        The ticket's future raises StorageError or BadWeights where the model is absent or damaged, CannotDraw where
        what is asked cannot be drawn with it, DrawTimeout.
        """
        ticket = Ticket()
        self._threads.submit(self._run, request, ticket)
        return ticket

    def warm(self, model: ModelRef) -> None:
        """The model's weights lie in host memory. Raises StorageError, BadWeights."""
        self._weights(model, materialize(self.store, model.base_files, self.scratch_dir))

    def held(self) -> list[str]:
        """The models of which a copy is here, by the SHA-256 of their manifests."""
        return [name for name in self.cache.names() if "/" not in name]

    def queued_pictures(self) -> int:
        """Pictures that wait or are being drawn."""
        return 0

    def stuck_s(self) -> float:
        """Seconds since the device last finished a denoising step of the batch it is at; 0.0 where it is idle."""
        return 0.0

    def close(self) -> None:
        """No thread of the engine runs any more; what waits is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def _run(self, request: DrawRequest, ticket: Ticket) -> None:
        if not ticket.future.set_running_or_notify_cancel():
            return
        try:
            ticket.future.set_result(DrawAnswer(pictures=self._draw(request)))
        except Exception as error:
            ticket.future.set_exception(error)

    def _draw(self, request: DrawRequest) -> list[Drawn]:
        """Fetching happens outside the device lock, so that a slow download never stops other models' pictures."""
        base_folder = materialize(self.store, request.model.base_files, self.scratch_dir)
        weights = self._weights(request.model, base_folder)
        drawn: dict[int, Drawn] = {}
        with self._device_lock:
            pipeline = self._activate(request.model, base_folder, weights)
            for places in batches([each.negative_prompt for each in request.draws], self.batch_size):
                rows = [
                    Row(each.prompt, each.negative_prompt, each.seed) for each in map(request.draws.__getitem__, places)
                ]
                drawings = sample_batch(pipeline, rows, setting_of(request, rows[0]), places=self.batch_size)
                for place, row, drawing in zip(places, rows, drawings or [], strict=True):
                    png = png_base64(
                        drawing.image,
                        prompt=row.prompt,
                        seed=row.seed,
                        model=request.model.model_id,
                        settings=settings_of(request),
                    )
                    drawn[place] = Drawn(png_base64=png, batch_size=self.batch_size)
        return [drawn[place] for place in range(len(request.draws))]

    def forget(self, manifest_sha256: str) -> None:
        """No copy of the model is left, in cache or live pipeline. Waits for the pictures that are being drawn."""
        self.cache.forget(manifest_sha256)
        with self._device_lock:
            for base_folder, skeleton in self._skeletons.items():
                if skeleton.active == manifest_sha256:
                    self._fill(skeleton, str(base_folder), self._base_weights(base_folder))

    def _weights(self, model: ModelRef, base_folder: Path) -> Weights:
        base = self._base_weights(base_folder)
        if model.manifest_key is None or model.manifest_sha256 is None:
            return base
        key, sha256 = model.manifest_key, model.manifest_sha256
        return base | self.cache.get(sha256, lambda: published_weights(self.store, key, sha256, self.scratch_dir))

    def _base_weights(self, base_folder: Path) -> Weights:
        return self.cache.get(str(base_folder), lambda: base_weights(base_folder))

    def _activate(self, model: ModelRef, base_folder: Path, weights: Weights) -> Any:
        """The base model's pipeline holding this model's weights."""
        skeleton = self._skeletons.get(base_folder)
        if skeleton is None:
            skeleton = Skeleton(load_pipeline(base_folder, self.dtype).to(self.device), active=str(base_folder))
            self._skeletons[base_folder] = skeleton
        wanted = model.manifest_sha256 or str(base_folder)
        if skeleton.active != wanted:
            self._fill(skeleton, wanted, weights)
        return skeleton.pipeline

    @staticmethod
    def _fill(skeleton: Skeleton, name: str, weights: Weights) -> None:
        skeleton.active = None  # a copy that fails half-way must never be taken for a model
        for component, tensors in weights.items():
            copy_into(getattr(skeleton.pipeline, component), tensors)
        skeleton.active = name


def setting_of(request: DrawRequest, row: Row) -> Setting:
    """What the row shares with those it may be sampled beside."""
    return Setting(
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
        has_negative=bool(row.negative_prompt),
    )


def settings_of(request: DrawRequest) -> dict[str, str]:
    """What a picture's file says of how it was drawn."""
    return {
        "guidance_scale": str(request.guidance_scale),
        "num_inference_steps": str(request.num_inference_steps),
        "scheduler": request.scheduler,
    }
