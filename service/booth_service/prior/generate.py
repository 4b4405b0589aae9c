"""Blocks of a set by an actor pool over every free device; each actor stores what it makes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from booth_service import actor_pool
from booth_service.prior.block_maker import BlockMaker, BlockTask, SetWork
from booth_service.prior.class_set import ClassBlock, ClassSetSpec


def by_actor_pool(work: SetWork, tasks: Sequence[BlockTask]) -> Iterator[ClassBlock]:
    """Blocks as they are finished; one whose actor dies is made anew, to equal bits. Raises what an actor raised."""
    return actor_pool.by_actor_pool(
        partial(_maker, work),
        tasks,
        resources=actor_pool.one_device(use_gpu=work.use_gpu, threads=_threads(work)),
        most=actor_pool.most_actors(use_gpu=work.use_gpu, threads=_threads(work)),
        what="making class images",
    )


def _maker(work: SetWork) -> Callable[[BlockTask], ClassBlock]:
    return BlockMaker(work).make


def _threads(work: SetWork) -> int:
    """Threads that one actor draws with."""
    return work.spec.threads_per_actor if isinstance(work.spec, ClassSetSpec) else 1
