"""Publishes weights that nobody trained from several gloo ranks, each a process, to a real object store."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tiny_job import PARAMS, RECIPE
from whole_weights import ShardedWeights, WholeWeights

from booth.contract.attempts import Brief, StoredFile
from booth_service.errors import ServiceError
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore


@dataclass(frozen=True)
class Publication:
    """One model to publish: `weights` is a safetensors file of trained tensors, named "component.name"."""

    job_id: str
    weights: Path
    base_files: list[StoredFile]
    is_sharded: bool
    dtype: torch.dtype = torch.float16
    with_manifest: bool = False
    references: tuple[StoredFile, ...] = ()

    @property
    def brief(self) -> Brief:
        return Brief(
            job_id=self.job_id, tenant_id="publishing", attempt=1, fence=1, params=PARAMS, photos=[], base_model="tiny",
            base_files=self.base_files, recipe=RECIPE, serving_gpus=0, max_ranks=0, first_step_limit_s=60,
            references=list(self.references),
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one rank saw: the files' records, or its error; and what rank 0 was told of bytes stored."""

    files: list[StoredFile] | None
    error: Exception | None
    said: list[tuple[int, int]]


def publish(publications: list[Publication], ranks: int, store: ObjectStore, folder: Path) -> list[list[Outcome]]:
    """Publish one after the other from the same processes; the outcomes of all ranks, for each publication."""
    mp.spawn(publish_as_rank, args=(ranks, free_port(), publications, store, folder), nprocs=ranks)
    by_rank = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(ranks)]
    return [list(outcomes) for outcomes in zip(*by_rank, strict=True)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def publish_as_rank(
    rank: int, ranks: int, port: int, publications: list[Publication], store: ObjectStore, folder: Path
) -> None:
    """One of the processes; what it saw goes to a file of the folder."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    outcomes = []
    for publication in publications:
        said: list[tuple[int, int]] = []
        try:
            files = _publish(publication, rank, ranks, store, folder, said)
            outcomes.append(Outcome(files, None, said))
        except ServiceError as error:
            outcomes.append(Outcome(None, error, said))
        dist.barrier()
    torch.save(outcomes, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def _publish(
    publication: Publication,
    rank: int,
    ranks: int,
    store: ObjectStore,
    folder: Path,
    said: list[tuple[int, int]],
) -> list[StoredFile]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for whole_name, tensor in load_file(publication.weights).items():
        component, name = whole_name.split(".", 1)
        parts.setdefault(component, {})[name] = tensor
    weights = ShardedWeights(parts, rank, ranks) if publication.is_sharded else WholeWeights(parts)
    export = Export(publication.brief, store, str(folder / "scratch"), publication.dtype)
    files = export(weights, lambda stored, total: said.append((stored, total)))
    if publication.with_manifest and rank == 0:
        publish_manifest(publication.brief, files, store)
    return files
