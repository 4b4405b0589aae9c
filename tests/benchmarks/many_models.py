"""C11, C13 and Z1: many tiny models behind the real engine, their weights in a SeaweedFS of its own.

C11: mean batch, and switches, of 64 requests that come at once for 8 models in turn. C13: seconds by which the longest
wait of others exceeds the age limit and a batch, while one model's queue never empties. Z1: pictures a second for 100
models with Zipf's traffic in memory for 5, as a share of what the same requests get where all are in memory.
"""

import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from figure import at_least, at_most, line
from miniature import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "examples" / "tinyworld"))
from own_s3 import own_s3
from published_models import publish_models, request
from tiny_base import write_tiny_base

from booth.contract.serving import DrawEvent, ModelRef
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

BATCH = BatchLimits(size=8, pixels=2**30)
TENANTS, REQUESTS, TURNS = 8, 64, 5
MEAN_BATCH, SWITCHES = at_least(5.0), at_most(16.0)

AGE_LIMIT_S, FLOOD_S, OTHERS, FLOOD_CALLS = 1.5, 12.0, 3, 48
TOO_LATE_S = at_most(0.0)

MODELS, SLOTS, EXPONENT, CLIENTS, ZIPF_REQUESTS, ZIPF_STEPS, ZIPF_TURNS = 100, 5, 1.1, 32, 120, 8, 3
SHARE = at_least(0.8)


@dataclass(frozen=True)
class Place:
    """Published models, and where an engine keeps their base."""

    store: ObjectStore
    models: list[ModelRef]
    scratch: str

    @contextmanager
    def engine(self, **limits: float) -> Iterator[Engine]:
        """An engine that has drawn once."""
        engine = Engine(self.store, "cpu", EngineLimits(BATCH, **limits), self.scratch)  # type: ignore[arg-type]
        try:
            engine.submit(request(self.models[0], 0)).future.result()
            yield engine
        finally:
            engine.close()


@contextmanager
def models_in_store(count: int) -> Iterator[Place]:
    """So many tiny models in a store of their own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="booth-many-models-") as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with own_s3(folder / "s3") as server:
            store = server.empty_bucket()
            base = write_tiny_base(folder / "tiny")
            models = publish_models(store, base, [f"many-{k}" for k in range(count)], folder / "scratch")
            yield Place(store, list(models.values()), str(folder / "scratch"))


def report_batches(name: str) -> bool:
    """Measure and print C11; True where both figures reach their goals."""
    batches, switches = [], []
    with models_in_store(TENANTS) as place, place.engine() as engine:
        for model in place.models:
            engine.warm(model)
        for turn in range(TURNS):
            before = engine.tally.batches, engine.tally.switches
            asked = [engine.submit(request(place.models[k % TENANTS], turn * REQUESTS + k)) for k in range(REQUESTS)]
            for each in asked:
                each.future.result()
            batches.append(REQUESTS / (engine.tally.batches - before[0]))
            switches.append(float(engine.tally.switches - before[1]))
    title = f"rows in a batch of at most {BATCH.size}, {REQUESTS} requests for {TENANTS} models in turn"
    print(line(name, batches, MEAN_BATCH, title))
    print(line(f"{name}s", switches, SWITCHES, "switches of models for them"), flush=True)
    return MEAN_BATCH.is_reached(statistics.median(batches)) and SWITCHES.is_reached(statistics.median(switches))


def report_flood(name: str) -> bool:
    """Measure and print C13; True where it reaches its goal."""
    with models_in_store(1 + OTHERS) as place, place.engine(age_limit_s=AGE_LIMIT_S) as engine:
        for model in place.models:
            engine.warm(model)
        waits = flooded_waits(engine, place.models[0], place.models[1:])
        batch_s = engine.tally.longest_batch_s
    late = max(waits) - AGE_LIMIT_S - batch_s
    title = (
        f"s that the longest of {len(waits)} waits ({max(waits):.2f} s) is over the age limit ({AGE_LIMIT_S} s) and a "
        f"batch ({batch_s:.2f} s), beside a flood"
    )
    print(line(name, [late], TOO_LATE_S, title), flush=True)
    return TOO_LATE_S.is_reached(late)


def flooded_waits(engine: Engine, flooding: ModelRef, others: list[ModelRef]) -> list[float]:
    """Seconds from asking to the first denoising step, of those who ask beside a flood."""
    is_over, waits = threading.Event(), []

    def flood() -> None:
        while not is_over.is_set():
            engine.submit(request(flooding, 1)).future.result()

    def ask(model: ModelRef, seed: int) -> None:
        began, first_step = time.monotonic(), threading.Event()

        def heard(event: DrawEvent) -> None:
            if not first_step.is_set():
                waits.append(time.monotonic() - began)
                first_step.set()

        engine.submit(request(model, seed), heard).future.result()

    with ThreadPoolExecutor(FLOOD_CALLS + OTHERS) as threads:
        for _ in range(FLOOD_CALLS):
            threads.submit(flood)
        until, seed = time.monotonic() + FLOOD_S, 0
        while time.monotonic() < until:
            for asked in [threads.submit(ask, model, seed) for model in others]:
                asked.result()
            seed += 1
        is_over.set()
    return waits


def report_zipf(name: str) -> bool:
    """Measure and print Z1; True where it reaches its goal."""
    shares, rates = [], []
    with models_in_store(MODELS) as place:
        size = changed_bytes(place)
        with (
            place.engine(model_cache_bytes=int((SLOTS + 0.5) * size)) as small,
            place.engine(model_cache_bytes=2 * MODELS * size) as large,
        ):
            for model in place.models:
                large.warm(model)
            for turn in range(ZIPF_TURNS):
                arms = [small, large] if turn % 2 else [large, small]
                rate = {engine: zipf_rate(engine, place.models, turn) for engine in arms}
                shares.append(rate[small] / rate[large])
                rates.append(rate[small])
            loads = small.tally.loads
    title = (
        f"of the rate with all {MODELS} models in memory where {SLOTS} fit, Zipf {EXPONENT}, {CLIENTS} clients "
        f"({statistics.median(rates):.1f} pictures/s, {loads} loads for {ZIPF_TURNS * ZIPF_REQUESTS})"
    )
    print(line(name, shares, SHARE, title), flush=True)
    return SHARE.is_reached(statistics.median(shares))


def zipf_rate(engine: Engine, models: list[ModelRef], seed: int) -> float:
    """Pictures a second of clients who each ask for the next one when they have theirs."""
    weights = [1 / rank**EXPONENT for rank in range(1, len(models) + 1)]
    wanted = random.Random(seed).choices(models, weights, k=ZIPF_REQUESTS)
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [
            clients.submit(lambda m=model, k=k: engine.submit(request(m, k, steps=ZIPF_STEPS)).future.result())
            for k, model in enumerate(wanted)
        ]:
            done.result()
    return ZIPF_REQUESTS / (time.perf_counter() - began)


def changed_bytes(place: Place) -> int:
    """Host memory of one model."""
    with place.engine() as engine:
        return engine.models.cache.bytes
