"""The hands of an attempt that one process does alone, on its one device: a cell of a group."""

import gc
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from booth.contract.attempts import Brief, StoredFile
from booth_service.adapter import read_photo
from booth_service.driver import Hands, refuse_eight_bit
from booth_service.errors import DoesNotFit, OutOfMemory
from booth_service.plan import Devices, Plan, plan, work_of
from booth_service.plan_sizes import sizes_of_folder
from booth_service.prior.block_maker import BlockMaker, BlockTask, SetWork
from booth_service.prior.class_set import ClassBlock
from booth_service.scores import score_here
from booth_service.settings import Settings
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training.rank import WorkerConfig, train_loop_per_worker


def lay_out_here(brief: Brief, config: Settings, store: ObjectStore) -> Plan:
    """The job's plan on this process's device. Raises DoesNotFit where it needs more than one."""
    gpus = 1 if torch.cuda.is_available() else 0
    memory_bytes = int(torch.cuda.get_device_properties(0).total_memory) if gpus else 0
    work = work_of(brief.params, sizes_of_folder(materialize(store, brief.base_files, config.scratch_dir)))
    try:
        layout = plan(Devices(cpus=1, gpus=gpus, gpu_memory_bytes=memory_bytes), work, max_ranks=1)
    except DoesNotFit as error:
        remedy = "cells of a group run on one device each; submitted as a job of its own it may have several"
        raise DoesNotFit(f"{error.detail}; {remedy}") from error
    if brief.params.optimizer == "adamw_8bit":
        refuse_eight_bit(layout)
    return layout


def make_here(work: SetWork, tasks: Sequence[BlockTask]) -> Iterator[ClassBlock]:
    """Class images, one block after the other."""
    maker = BlockMaker(work)
    for task in tasks:
        yield maker.make(task)


def fit_here(worker: WorkerConfig, run_name: str) -> list[StoredFile]:
    """The run's one rank, without a gang; returns the exported files. Raises what the rank does, and OutOfMemory."""
    clear()  # what class images or a cell before have left
    backend = "cpu:gloo,cuda:nccl" if worker.plan.use_gpu else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]  # in memory: nobody else joins
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        return train_loop_per_worker({"worker": worker}) or []
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"{run_name}: {error}") from error
    finally:
        dist.destroy_process_group()
        clear()


def clear() -> None:
    """Memory that nothing refers to is the device's again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def uses_gpu_here(serving_gpus: float) -> bool:
    """Whether this process has a GPU; what serving holds was taken off before it got one."""
    return torch.cuda.is_available()


HERE = Hands(lay_out_here, make_here, fit_here, score_here, read_photo, uses_gpu_here)
