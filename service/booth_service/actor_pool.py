"""Work of one kind on every free device of the cluster: a Ray Data actor pool, whose errors come home whole."""

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.exceptions import RayError

from booth_service.errors import DoesNotFit, OutOfMemory, ServiceError, WorkerDied

SPARED_CPUS = 0.1  # of each actor's: what a serving replica on the same machine holds

Task = TypeVar("Task")
Done = TypeVar("Done")


def by_actor_pool(
    make_worker: Callable[[], Callable[[Task], Done]],
    tasks: Sequence[Task],
    *,
    resources: dict[str, float],
    most: int,
    what: str,
    at_once: int = 1,
) -> Iterator[Done]:
    """What a worker makes of each task, as it is finished. Tasks and results travel pickled, and should be small.

    Each of up to `most` actors holds `resources` and makes itself a worker, which has `at_once` tasks at a time, each
    in a thread of its own. The pool begins with the first free device and grows while others are. An actor that dies is
    started again by Ray and its tasks done anew. Raises what a worker raised; `what` says in an error of Ray's what was
    being done.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    most = max(1, min(len(tasks), most))
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PoolActor,
        fn_constructor_args=(make_worker,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=most,
            initial_size=most,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        **resources,
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield pickle.loads(row["done"])
    except RayError as error:
        kind = OutOfMemory if "OutOfMemory" in str(error) else WorkerDied
        raise kind(f"{what} failed: {error}") from error


def one_device(*, use_gpu: bool, threads: int = 1) -> dict[str, float]:
    """What one actor holds."""
    return {"num_gpus": 1} if use_gpu else {"num_cpus": threads - SPARED_CPUS}


def most_actors(*, use_gpu: bool, threads: int = 1) -> int:
    """As many as the cluster's devices could hold were they all free."""
    cluster = ray.cluster_resources()
    return int(cluster.get("GPU", 0)) if use_gpu else int(cluster.get("CPU", 1)) // threads


def uses_gpu(serving_gpus: float) -> bool:
    """Whether actors draw on GPUs: wherever the cluster has any. Raises DoesNotFit where inference holds them all."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus and gpus - serving_gpus < 1:
        raise DoesNotFit(f"inference holds {serving_gpus:g} of the cluster's {gpus:g} GPUs, and none is left")
    return bool(gpus)


class PoolActor:
    """A worker as Ray Data calls it.

    The service's errors travel as values: of what an actor raises Ray Data brings home the text alone.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._make_worker = make_worker
        self._worker: Callable[[Any], Any] | None = None
        self._lock = threading.Lock()

    def worker(self) -> Callable[[Any], Any]:
        """Made at the first task, so that what goes wrong in it is told like the rest."""
        with self._lock:
            if self._worker is None:
                self._worker = self._make_worker()
            return self._worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        (task,) = batch["task"]
        done, error = b"", b""
        try:
            done = pickle.dumps(self.worker()(pickle.loads(task)))
        except ServiceError as refused:
            error = pickle.dumps(refused)
        return {"done": [done], "error": [error]}
