"""Blocks of a set by a Ray Data actor pool over every free device; each actor stores what it makes."""

import pickle
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from booth_service.errors import OutOfMemory, ServiceError, WorkerDied
from booth_service.prior.block_maker import BlockMaker, BlockTask, SetWork
from booth_service.prior.class_set import ClassBlock, ClassSetSpec

SPARED_CPUS = 0.1  # of each actor's: what a serving replica on the same machine holds


def by_actor_pool(work: SetWork, tasks: Sequence[BlockTask]) -> Iterator[ClassBlock]:
    """Blocks as they are finished. The pool begins with the first free device and grows while others are.

    An actor that dies is started again by Ray and its block made anew, to equal bits. Raises what an actor raised.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"first": task.first, "replace": task.replace} for task in tasks]
    most = max(1, min(len(tasks), most_actors(work)))
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        BlockActor,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=1
        ),
        **resources(work),
    )
    try:
        for row in made.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield ClassBlock.model_validate_json(row["record"])
    except RayError as error:
        kind = OutOfMemory if "OutOfMemory" in str(error) else WorkerDied
        raise kind(f"making class images failed: {error}") from error


def resources(work: SetWork) -> dict[str, float]:
    """What one actor holds."""
    return {"num_gpus": 1} if work.use_gpu else {"num_cpus": threads(work) - SPARED_CPUS}


def threads(work: SetWork) -> int:
    """Threads that one actor draws with."""
    return work.spec.threads_per_actor if isinstance(work.spec, ClassSetSpec) else 1


def most_actors(work: SetWork) -> int:
    """As many as the cluster's devices could hold were they all free."""
    cluster = ray.cluster_resources()
    return int(cluster.get("GPU", 0)) if work.use_gpu else int(cluster.get("CPU", 1)) // threads(work)


class BlockActor:
    """A `BlockMaker` as Ray Data calls it: only the blocks' records travel through Ray, or why there is none.

    The service's errors travel as values: of what an actor raises Ray Data brings home the text alone.
    """

    def __init__(self, work: SetWork) -> None:
        self.work = work

    @cached_property
    def maker(self) -> BlockMaker:
        """Made at the first block, so that what goes wrong in it is told like the rest."""
        return BlockMaker(self.work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (first,), (replace,) = batch["first"], batch["replace"]
        record, error = "", b""
        try:
            record = self.maker.make(BlockTask(int(first), bool(replace))).model_dump_json()
        except ServiceError as refused:
            error = pickle.dumps(refused)
        return {"record": [record], "error": [error]}
