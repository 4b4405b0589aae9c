"""Requests for several models from many threads at random times, each picture compared with one drawn alone."""

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from published_models import request

from booth.contract.serving import Drawn, ModelRef
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

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
    """Pictures by model, seed and batch size, each drawn by an engine that draws nothing beside it."""

    store: ObjectStore
    models: Mapping[str, ModelRef]
    scratch: str
    _engines: dict[int, Engine] = field(default_factory=dict)
    _drawn: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def picture(self, model: str, seed: int, batch_size: int) -> str:
        """PNG in base64."""
        if batch_size not in self._engines:
            limits = EngineLimits(BatchLimits(batch_size, 2**30, is_fixed=True))
            self._engines[batch_size] = Engine(self.store, "cpu", limits, self.scratch)
        key = model, seed, batch_size
        if key not in self._drawn:
            answer = self._engines[batch_size].submit(request(self.models[model], seed)).future.result(120)
            self._drawn[key] = answer.pictures[0].png_base64
        return self._drawn[key]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


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
        each.picture.png_base64 != alone.picture(each.model, each.seed, each.picture.batch_size) for each in answered
    )
