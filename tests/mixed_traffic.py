"""Requests for several models from many threads at random times, each picture compared with one drawn alone."""

import base64
import io
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from published_models import request
from safetensors.torch import load_file
from stored_base import fetch

from booth.contract.attempts import Manifest
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH
from booth.contract.serving import Drawn, ModelRef
from booth_service.diffusion.batch import sample_batch
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.image_prompt import ImagePrompt, load_adapter
from booth_service.inference.engine import Engine
from booth_service.inference.rows import rows_of, setting_of
from booth_service.storage.s3 import ObjectStore

BATCH_SIZES = (1, 2, 4, 8)
SEEDS = 4  # few, so that few pictures have to be drawn alone
THREADS = 8
LONGEST_PAUSE_S = 0.03


@dataclass(frozen=True)
class Answered:
    """One picture of a request."""

    model: str
    seed: int
    picture: Drawn


@dataclass
class Alone:
    """Pictures by model, seed and batch size, each drawn by a pipeline that was loaded from its model's own folder."""

    store: ObjectStore
    models: Mapping[str, ModelRef]
    scratch: Path
    _pipelines: dict[str, Any] = field(default_factory=dict)
    _prompts: dict[str, ImagePrompt] = field(default_factory=dict)
    _drawn: dict[tuple[str, int, int], bytes] = field(default_factory=dict)

    def pixels(self, model: str, seed: int, batch_size: int) -> bytes:
        """The picture's values. Those of different models differ."""
        key = model, seed, batch_size
        if key not in self._drawn:
            asked = request(self.models[model], seed)
            [row] = rows_of(asked)
            pipeline = self._pipeline(model)
            prompt = self._prompts.get(model)
            drawings = sample_batch(pipeline, [row], setting_of(asked, row), places=batch_size, image_prompt=prompt)
            assert drawings is not None
            self._drawn[key] = drawings[0].image.tobytes()
            assert sum(values == self._drawn[key] for values in self._drawn.values()) <= len(BATCH_SIZES), model
        return self._drawn[key]

    def _pipeline(self, model: str) -> Any:
        if model not in self._pipelines:
            manifest = Manifest.model_validate_json(self.store.get(self.models[model].manifest_key or ""))
            fetch(self.store, manifest.files, self.scratch / model)
            self._pipelines[model] = load_pipeline(self.scratch / model, torch.float32)
            if (embeds := self.scratch / model / EMBEDS_PATH).exists():
                adapter = load_adapter(self._pipelines[model], self.scratch / model)
                scale = manifest.params.ip_adapter_scale
                self._prompts[model] = ImagePrompt(adapter, load_file(embeds)[EMBEDS], scale)
        return self._pipelines[model]


def mixed_traffic(engine: Engine, models: Mapping[str, ModelRef], requests: int, seed: int = 0) -> list[Answered]:
    """All pictures of so many requests of one to three pictures each. Raises what the engine does."""
    chance, answered, lock = random.Random(seed), [], threading.Lock()
    wanted = [
        (chance.choice(list(models)), [chance.randrange(SEEDS) for _ in range(chance.choice([1, 1, 2, 3]))])
        for _ in range(requests)
    ]
    pauses = [chance.uniform(0, LONGEST_PAUSE_S) for _ in wanted]

    def ask(model: str, seeds: list[int], pause_s: float) -> None:
        time.sleep(pause_s)
        pictures = engine.submit(request(models[model], *seeds)).future.result(120).pictures
        with lock:
            answered.extend(Answered(model, seed, picture) for seed, picture in zip(seeds, pictures, strict=True))

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(ask, *each, pause) for each, pause in zip(wanted, pauses, strict=True)]:
            done.result(300)
    assert len(answered) == sum(len(seeds) for _, seeds in wanted)
    return answered


def wrong_pictures(answered: list[Answered], alone: Alone) -> int:
    """How many are not bit by bit what is drawn alone at the same padded size."""
    return sum(
        pixels(each.picture) != alone.pixels(each.model, each.seed, each.picture.batch_size) for each in answered
    )


def pixels(picture: Drawn) -> bytes:
    """A picture's values."""
    return Image.open(io.BytesIO(base64.b64decode(picture.png_base64))).tobytes()
