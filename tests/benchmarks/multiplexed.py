"""C12: 64 requests of 8 interleaved tenants, our engine against Ray Serve's own `multiplexed` and `batch`.

Both arms are deployments of one replica in one Ray, called by handle, round the same pipeline with the same published
models, all resident before the first turn; a switch costs one denoising step of a single picture more in
both. Pictures are compared first. `batch` splits what it gathered by model and runs the parts side by side, so round
the shared pipeline there is a lock, without which pictures would be wrong.

What batching itself gives is the pipeline's affair: with tinyworld on one CPU thread 8 rows cost nearly 4 times as much
as one, so that C12t could not come to much more than 2 however models are chosen. C12 draws with a pipeline whose 8
rows cost about twice one row, as small batches do on GPUs.
"""

import asyncio
import base64
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure import at_least, line
from miniature import ROOT
from PIL.Image import Image
from ray import serve
from safetensors.torch import load

sys.path.insert(0, str(ROOT / "tests"))
from class_pool import own_ray
from own_s3 import own_s3
from published_models import publish_models, request
from tiny_base import write_tiny_base

from booth.contract.attempts import Manifest
from booth.contract.serving import DrawRequest, ModelRef
from booth.pictures import opened
from booth_service.diffusion.components import live_name, load_pipeline
from booth_service.inference.engine import Engine
from booth_service.inference.skeleton import Skeleton
from booth_service.settings import Settings
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

TINYWORLD = ROOT / "examples" / "tinyworld" / "base_model"
TENANTS, REQUESTS, BATCH, TURNS = 8, 64, 8, 5
PROMPT, STEPS, GUIDANCE = "a photo of a teapot", 10, 3.0
GOAL = at_least(3.0)


@dataclass(frozen=True)
class Place:
    """Where replicas find the models. Small and picklable."""

    bucket: str
    endpoint_url: str
    scratch_dir: str
    models: list[ModelRef]
    side_px: int

    def store(self) -> ObjectStore:
        return ObjectStore(self.bucket, self.endpoint_url, "us-east-1")


def one_step(pipeline: Any, side_px: int) -> None:
    """One denoising step of one picture with guidance: what a switch costs more, in both arms."""
    unet = pipeline.unet
    side = side_px // pipeline.vae_scale_factor
    context = torch.zeros(2, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(torch.zeros(2, unet.config.in_channels, side, side), 1, encoder_hidden_states=context)


class CostlySkeleton(Skeleton):
    """Ours, with a switch that costs a denoising step more."""

    switches, side_px = 0, 0

    def fill(self, component: str, name: str, tensors: Any) -> None:
        super().fill(component, name, tensors)
        if component == "unet":
            CostlySkeleton.switches += 1
            one_step(self.pipeline, CostlySkeleton.side_px)


@serve.deployment(max_ongoing_requests=2 * REQUESTS, ray_actor_options={"num_cpus": 0})
class Ours:
    """Booth's engine behind a handle."""

    def __init__(self, place: Place) -> None:
        torch.set_num_threads(1)
        from booth_service.inference import models

        models.Skeleton = CostlySkeleton  # type: ignore[misc]
        limits = Settings(serving_batch_size=BATCH, scratch_dir=place.scratch_dir)
        self.engine = Engine.from_settings(limits, place.store(), "cpu")
        CostlySkeleton.side_px, self.place = place.side_px, place

    async def draw(self, tenant: int, seed: int) -> str:
        answer = await asyncio.wrap_future(
            self.engine.submit(asked(self.place.models[tenant], seed, self.place.side_px)).future
        )
        return answer.pictures[0].png_base64

    async def switches(self) -> int:
        return CostlySkeleton.switches


@serve.deployment(max_ongoing_requests=2 * REQUESTS, ray_actor_options={"num_cpus": 0})
class Multiplexed:
    """The same pipeline as Ray's documentation puts models behind an endpoint."""

    def __init__(self, place: Place) -> None:
        torch.set_num_threads(1)
        self.models, self.lock, self.live, self.count = place.models, asyncio.Lock(), "", 0
        folder = materialize(place.store(), place.models[0].base_files, place.scratch_dir)
        self.pipeline = load_pipeline(folder, torch.float32)
        self.base = {each: dict(getattr(self.pipeline, each).state_dict()) for each in ("unet", "text_encoder")}
        self.place = place

    @serve.multiplexed(max_num_models_per_replica=TENANTS)  # type: ignore[untyped-decorator]
    async def weights(self, tenant: str) -> Any:
        model = self.models[int(tenant)]
        return await asyncio.to_thread(published, self.place.store(), model)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.02)  # type: ignore[untyped-decorator]
    async def draw(self, seeds: list[int]) -> list[str]:
        tenant = serve.get_multiplexed_model_id()
        weights = await self.weights(tenant)
        async with self.lock:
            return await asyncio.to_thread(self._draw, tenant, weights, seeds)

    async def switches(self) -> int:
        return self.count

    def _draw(self, tenant: str, weights: Any, seeds: list[int]) -> list[str]:
        if self.live != tenant:
            for component, tensors in weights.items():
                copy_into(getattr(self.pipeline, component), tensors)
            one_step(self.pipeline, self.place.side_px)
            self.live, self.count = tenant, self.count + 1
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        answer = self.pipeline(
            [PROMPT] * len(seeds), generator=generators, guidance_scale=GUIDANCE, num_inference_steps=STEPS,
            width=self.place.side_px, height=self.place.side_px,
        )  # fmt: skip
        return [encoded(image) for image in answer.images]


def asked(model: ModelRef, seed: int, side_px: int) -> DrawRequest:
    return request(model, seed, prompt=PROMPT, side_px=side_px, steps=STEPS, guidance_scale=GUIDANCE)


def published(store: ObjectStore, model: ModelRef) -> dict[str, dict[str, torch.Tensor]]:
    """The model's changed tensors, component by component."""
    manifest = Manifest.model_validate_json(store.get(model.manifest_key or ""))
    return {file.path.split("/")[0]: load(store.get(file.key)) for file in manifest.changed}


@torch.no_grad()
def copy_into(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    live = module.state_dict()
    for name, tensor in tensors.items():
        if (target := live_name(name, live)) is not None:
            live[target].copy_(tensor)


def report(name: str) -> bool:
    """Measure and print C12 and C12t; True where C12 reaches its goal."""
    with tempfile.TemporaryDirectory(prefix="booth-tiny-") as folder:
        tiny = measured(write_tiny_base(Path(folder) / "tiny"), 32)
    print(line(name, tiny.ratios, GOAL, f"{tiny.title}, tiny pipeline 32 px"), flush=True)
    tinyworld = measured(TINYWORLD, 64)
    print(line(f"{name}t", tinyworld.ratios, None, f"{tinyworld.title}, tinyworld 64 px"), flush=True)
    return GOAL.is_reached(statistics.median(tiny.ratios))


@dataclass(frozen=True)
class Measured:
    """Their makespan over ours in each turn, and what is to be said of it."""

    ratios: list[float]
    title: str


def measured(base: Path, side_px: int) -> Measured:
    """Both arms with models of this base, in turn."""
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    switches: dict[str, list[int]] = {"ours": [], "theirs": []}
    with both_arms(base, side_px) as arms:
        asyncio.run(refuse_other_pictures(**arms))
        for turn in range(TURNS):
            for arm in sorted(arms, reverse=turn % 2 == 1):
                before = arms[arm].switches.remote().result()
                spent[arm].append(asyncio.run(makespan_s(arms[arm], arm)))
                switches[arm].append(arms[arm].switches.remote().result() - before)
    ratios = [theirs / ours for ours, theirs in zip(spent["ours"], spent["theirs"], strict=True)]
    ours, theirs = (statistics.median(switches[arm]) for arm in ("ours", "theirs"))
    title = f"makespan of serve.batch + multiplexed ({theirs:.0f} switches) over ours ({ours:.0f})"
    return Measured(ratios, f"{title}, {REQUESTS} requests of {TENANTS} tenants")


async def makespan_s(arm: Any, name: str) -> float:
    """Seconds until all requests of the interleaved tenants are answered, sent at once."""
    began = time.perf_counter()
    await asyncio.gather(*(drawn(arm, name, number % TENANTS, number) for number in range(REQUESTS)))
    return time.perf_counter() - began


async def drawn(arm: Any, name: str, tenant: int, seed: int) -> str:
    if name == "ours":
        return str(await arm.draw.remote(tenant, seed))
    return str(await arm.options(multiplexed_model_id=str(tenant)).draw.remote(seed))


async def refuse_other_pictures(ours: Any, theirs: Any) -> None:
    """Raise unless both draw the same for each tenant, and tenants differ. All models are resident afterwards."""
    seen = []
    for tenant in range(TENANTS):
        one, other = await drawn(ours, "ours", tenant, 1), await drawn(theirs, "theirs", tenant, 1)
        assert np.abs(pixels(one) - pixels(other)).max() <= 1, tenant
        seen.append(one)
    assert len(set(seen)) == TENANTS


def pixels(png_base64: str) -> np.ndarray:
    return np.asarray(opened(base64.b64decode(png_base64)), float)


def encoded(image: Image) -> str:
    """As our pictures are encoded, without what they say of themselves."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def both_arms(base: Path, side_px: int) -> Iterator[dict[str, Any]]:
    """Handles of both deployments, on a Ray and a store of their own."""
    with tempfile.TemporaryDirectory(prefix="booth-c12-") as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with own_s3(folder / "s3") as server:
            store = server.empty_bucket()
            models = publish_models(store, base, [f"tenant-{k}" for k in range(TENANTS)], folder / "scratch")
            place = Place(store.bucket, server.endpoint_url, str(folder / "scratch"), list(models.values()), side_px)
            with own_ray():
                try:
                    yield {
                        "ours": serve.run(Ours.bind(place), name="ours", route_prefix=None),
                        "theirs": serve.run(Multiplexed.bind(place), name="theirs", route_prefix=None),
                    }
                finally:
                    serve.shutdown()
