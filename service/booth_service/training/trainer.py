"""One Ray Train gang for one attempt."""

from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from booth.contract.attempts import StoredFile
from booth_service.errors import OutOfMemory, ServiceError, WorkerDied
from booth_service.storage.s3 import ObjectStore
from booth_service.training.rank import WorkerConfig, train_loop_per_worker

COLLECTIVE_TIMEOUT_S = 300


def fit(config: WorkerConfig, run_name: str) -> list[StoredFile]:
    """Run the gang to its end and return the exported files.

    `run_name` must be new for every attempt: Ray Train continues by itself whatever it finds under a name.
    Raises the ServiceError that the worst rank raised, OutOfMemory, or WorkerDied.
    """
    plan = config.plan
    resources = {"CPU": plan.cpus_per_rank, **({"GPU": 1.0} if plan.use_gpu else {})}
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"worker": config},
        scaling_config=ScalingConfig(num_workers=plan.ranks, use_gpu=plan.use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(name=run_name, failure_config=FailureConfig(max_failures=0), **_storage(config.store)),
    )
    try:
        result = trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise worst(list(error.worker_failures.values())) from error
    except ray.train.ControllerError as error:
        raise WorkerDied(f"Ray Train's controller failed: {error.controller_failure}") from error
    files: list[StoredFile] = result.return_value
    return files


def worst(failures: list[Exception]) -> ServiceError:
    """The failure to tell the user: when one rank dies, the others only report that their peer is gone."""
    causes = [cause for failure in failures for cause in _chain(failure)]
    for cause in causes:
        if isinstance(cause, ServiceError):
            return cause
    for cause in causes:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or "OutOfMemory" in type(cause).__name__:
            return OutOfMemory(str(cause))
    return WorkerDied("; ".join(str(failure) for failure in failures))


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and all that it wraps, through Ray's wrappers too."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        wrapped = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        error = wrapped if isinstance(wrapped, BaseException) else error.__cause__
    return chain


def _storage(store: ObjectStore) -> dict[str, Any]:
    """Ray Train's own bookkeeping goes to the object store, which every node of a cluster reaches."""
    from pyarrow import fs

    endpoint = store.client.meta.endpoint_url
    scheme, address = endpoint.split("://", 1)
    if "amazonaws.com" in address:
        filesystem = fs.S3FileSystem(region=store.client.meta.region_name)
    else:
        filesystem = fs.S3FileSystem(endpoint_override=address, scheme=scheme, region=store.client.meta.region_name)
    return {"storage_path": f"{store.bucket}/ray-train", "storage_filesystem": filesystem}
