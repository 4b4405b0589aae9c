"""One block of a generation: drawn by an engine as one batch of a fixed size, and stored."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from booth.contract.bulk import DrawnBlock, DrawnPicture
from booth.contract.serving import Draw, Drawn, DrawRequest
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage import keys
from booth_service.storage.generation_blocks import store_block
from booth_service.storage.s3 import ObjectStore

UPLOAD_THREADS = 4


@dataclass(frozen=True)
class BulkWork:
    """All that whoever draws blocks of a generation needs. Small and picklable; weights come from the object store.

    `request` has no draws; those of a task take their place.
    """

    request: DrawRequest
    block_size: int
    store: ObjectStore
    prefix: str
    cache_bytes: int
    scratch_dir: str | None
    use_gpu: bool


@dataclass(frozen=True)
class BulkTask:
    """A block to draw: its first picture's number, and what its pictures are. `replace`: its record stands already."""

    first: int
    draws: tuple[Draw, ...]
    replace: bool = False


@dataclass(frozen=True)
class ArmTask:
    """A block of one of several works of one size, by the work's number."""

    arm: int
    task: BulkTask


class Drawer:
    """Draws whole blocks. Holds an engine with the generation's one model, or shares one with other models' drawers."""

    def __init__(self, work: BulkWork, engine: Engine | None = None) -> None:
        self.work = work
        self.engine = engine or _engine(work)

    def draw(self, task: BulkTask) -> DrawnBlock:
        """The block, stored. Raises StorageError, BadWeights, CannotDraw."""
        work = self.work
        request = work.request.model_copy(update={"draws": list(task.draws)})
        drawn = self.engine.submit(request).future.result().pictures
        numbers = range(task.first, task.first + len(task.draws))
        with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
            pictures = list(pool.map(self._store, numbers, task.draws, drawn))
        block = DrawnBlock(first=task.first, pictures=pictures)
        return store_block(work.store, work.prefix, block, replace=task.replace)

    def _store(self, index: int, draw: Draw, drawn: Drawn) -> DrawnPicture:
        png = base64.b64decode(drawn.png_base64)
        sha256 = hashlib.sha256(png).hexdigest()
        key = keys.generation_picture(self.work.prefix, index, sha256)
        self.work.store.put(key, png, "image/png")
        return DrawnPicture(
            index=index,
            prompt=draw.prompt,
            seed=draw.seed,
            batch_size=drawn.batch_size,
            key=key,
            bytes=len(png),
            sha256=sha256,
        )


def _engine(work: BulkWork) -> Engine:
    if not work.use_gpu:
        torch.set_num_threads(1)  # as at the endpoint: more would draw other last digits
    device = "cuda" if work.use_gpu else "cpu"
    pixels = work.block_size * work.request.width * work.request.height
    limits = EngineLimits(batch=BatchLimits(work.block_size, pixels, is_fixed=True), model_cache_bytes=work.cache_bytes)
    return Engine(work.store, device, limits, work.scratch_dir)


def drawer_of_arms(works: Sequence[BulkWork]) -> Callable[[ArmTask], tuple[int, DrawnBlock]]:
    """The same for several works, whose models take turns in one engine. The work's number comes with the block."""
    first = Drawer(works[0])
    drawers = [Drawer(work, first.engine) for work in works]
    return lambda asked: (asked.arm, drawers[asked.arm].draw(asked.task))


def drawer(work: BulkWork) -> Callable[[BulkTask], DrawnBlock]:
    """What an actor of a pool does with its tasks."""
    return Drawer(work).draw
