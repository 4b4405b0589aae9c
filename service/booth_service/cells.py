"""The spine of one attempt of a group: walk its cells, then report. The entrypoint of a Ray job.

python -m booth_service.cells <group id> <attempt>
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from booth.contract.bulk import Finished
from booth.contract.evaluation import REPORT_PHASE
from booth.contract.groups import CELLS_PHASE, GroupBrief
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service import actor_pool, driver
from booth_service.attempt import attempt
from booth_service.beats import Line, Pulse, RunLine
from booth_service.cell_walk import Walk, Worker, places_of
from booth_service.group_files import store_group_report
from booth_service.one_device import HERE
from booth_service.settings import Settings, settings
from booth_service.storage.s3 import ObjectStore


def main(group_id: str, number: int) -> int:
    """Run the attempt; the exit code is 0 where every cell is over and the report is stored."""
    config = settings()
    line = RunLine(config.api_url, config.stack_secret, group_id, number)

    def walk(brief: GroupBrief) -> None:
        ray.init(log_to_driver=True)
        use_gpu = actor_pool.uses_gpu(brief.serving_gpus)
        devices = actor_pool.most_actors(use_gpu=use_gpu)
        places = places_of(devices, brief.serving_gpus, brief.settings.cells_at_once, use_gpu=use_gpu)
        print(f"{len(brief.cells)} cells, {places} at a time", flush=True)
        run(brief, line, config, lambda: RayWorker(config, use_gpu=use_gpu), places)

    return attempt(line, line.group_brief, walk)


def run(brief: GroupBrief, line: RunLine, config: Settings, make_worker: Callable[[], Worker], places: int) -> None:
    """Every step of the attempt, in order. Raises ServiceError."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    total = len(brief.cells)
    with Pulse(line, brief.fence, JobState.PREPARING, Progress(phase=CELLS_PHASE, total_steps=total)) as pulse:
        Walk(brief, line, pulse, make_worker, places).to_the_end()
        pulse.say(Progress(phase=REPORT_PHASE, step=total, total_steps=total))
        key, sha256 = store_group_report(store, brief, line.cells().cells)
    line.done(Finished(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    print(f"reported {key}", flush=True)


class RayWorker:
    """Implements `Worker` with an actor that holds one device for as long as it lives."""

    def __init__(self, config: Settings, *, use_gpu: bool) -> None:
        resources: dict[str, Any] = {"num_cpus": 0, **actor_pool.one_device(use_gpu=use_gpu)}
        self._actor = ray.remote(CellProcess).options(**resources).remote(config)

    def start(self) -> Future[object]:
        return _future(self._actor.there.remote())

    def run(self, job_id: str, attempt: int) -> Future[object]:
        return _future(self._actor.run.remote(job_id, attempt))

    def end(self) -> None:
        ray.kill(self._actor)


class CellProcess:
    """What an actor is: cell after cell on its one device, each as a job of its own would run."""

    def __init__(self, config: Settings) -> None:
        self._config = config

    def there(self) -> bool:
        """The process has its device."""
        return True

    def run(self, job_id: str, number: int) -> int:
        """The attempt is over and has said how; its exit code."""
        return run_cell(self._config, job_id, number)


def run_cell(config: Settings, job_id: str, number: int) -> int:
    """One cell's attempt in this process, on its device."""
    line = Line(config.api_url, config.stack_secret, job_id, number)
    return attempt(line, line.brief, lambda brief: driver.run(brief, line, config, HERE))


def _future(reference: Any) -> Future[object]:
    future: Future[object] = reference.future()
    return future


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
