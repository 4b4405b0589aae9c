"""Blocks of a set by a Ray Data actor pool over every free device; each actor stores what it makes."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from booth_service.errors import ServiceError, WorkerDied
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
            yield ClassBlock.model_validate_json(row["record"])
    except RayError as error:
        raise cause(error) from error


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


def cause(error: BaseException) -> ServiceError:
    """The service's own error that an actor raised, out of Ray's wrappers; WorkerDied for anything else."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ServiceError):
            return inner
        wrapped = getattr(inner, "cause", None)
        inner = wrapped if isinstance(wrapped, BaseException) else inner.__cause__
    return WorkerDied(f"making class images failed: {error}")


class BlockActor:
    """A `BlockMaker` as Ray Data calls it; only the blocks' records travel through Ray."""

    def __init__(self, work: SetWork) -> None:
        self.maker = BlockMaker(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        tasks = [
            BlockTask(int(first), bool(replace))
            for first, replace in zip(batch["first"], batch["replace"], strict=True)
        ]
        return {"record": [self.maker.make(task).model_dump_json() for task in tasks]}
