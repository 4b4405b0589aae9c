"""A Ray of one's own with two CPUs, and the actors of a pool on it: which there are, how they die."""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray

ACTOR = "MapWorker(MapBatches(PoolActor))"
ROOT = Path(__file__).parents[1]


@contextmanager
def own_ray(cpus: int = 2) -> Iterator[None]:
    """A cluster on this machine while the block runs; its workers import these sources and reach the same S3."""
    paths = os.pathsep.join(
        str(ROOT / part) for part in ("sdk", "service", "tests", "tests/benchmarks", "examples/tinyworld")
    )
    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **own}
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def one_cpu_taken() -> Iterator[None]:
    """Something else holds a CPU of the cluster."""

    @ray.remote(num_cpus=1)
    class Holder:
        def there(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.there.remote())
    try:
        yield
    finally:
        ray.kill(holder)


def actors() -> list[psutil.Process]:
    """The pool's processes, below this one's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(ACTOR in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class Killer:
    """Kills an actor at random moments, `wanted` times in all, each after a further block of the set."""

    wanted: int
    seed: int
    killed: int = 0
    most_at_once: int = 0
    _due: threading.Event = field(default_factory=threading.Event)
    _over: bool = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over = True
            self._due.set()
            thread.join()

    def block_made(self) -> None:
        """A block of the set was made."""
        self.most_at_once = max(self.most_at_once, len(actors()))
        self._due.set()

    def _run(self) -> None:
        draw = random.Random(self.seed)
        while self.killed < self.wanted:
            self._due.wait()
            if self._over:
                return
            self._due.clear()
            time.sleep(draw.uniform(0, 1))
            if there := actors():
                draw.choice(there).kill()
                self.killed += 1
