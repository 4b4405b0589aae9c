"""Checkpoints that any number of ranks can continue: each rank stores its share as safetensors, the manifest last.

DeepSpeed's own checkpoints are pickles bound to the number of ranks that wrote them. These hold, for every parameter
fragment a rank owns, the fp32 master and both Adam moments, named by parameter and offset.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel
from safetensors.torch import load, save
from torch import Tensor

from booth_service.storage.s3 import ObjectStore

KINDS = ("fp32", "exp_avg", "exp_avg_sq")


class ShardRecord(BaseModel):
    """One rank's file, its tensors named kind/parameter/start."""

    key: str
    sha256: str


class CheckpointManifest(BaseModel):
    """A committed checkpoint: `step` optimizer steps are in it."""

    step: int
    fence: int
    shards: list[ShardRecord]


@dataclass(frozen=True)
class Fragment:
    """What this rank owns of one parameter: the range in the parameter, and views of master and moments."""

    name: str
    start: int
    length: int
    views: dict[str, Tensor]


def fragments(model_engine: Any) -> Iterator[Fragment]:
    """This rank's share of a stage 1 or 2 engine, as live 1-D fp32 views. Needs one optimizer step, or `warm_up`."""
    zero = model_engine.optimizer
    for name, parameter in model_engine.module.named_parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            continue
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        state = zero.optimizer.state[flat]
        at, owned = mapping.lp_fragment_address, mapping.hp_fragment_address
        sources = {"fp32": flat, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        views = {kind: source.narrow(0, owned.start, owned.numel) for kind, source in sources.items()}
        yield Fragment(name, at.start, owned.numel, views)


def write(model_engine: Any, store: ObjectStore, step: int, fence: int, key: Callable[[str], str]) -> str:
    """Store a checkpoint and return its manifest's key. Every rank must call it; the manifest makes it real."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tensors = {f"{kind}/{f.name}/{f.start}": view for f in fragments(model_engine) for kind, view in f.views.items()}
    body = save({name: view.detach().cpu().contiguous() for name, view in tensors.items()})
    shard_key = key(f"rank-{rank:05d}-of-{ranks:05d}.safetensors")
    store.put(shard_key, body)
    mine = ShardRecord(key=shard_key, sha256=hashlib.sha256(body).hexdigest())
    shards: list[ShardRecord | None] = [None] * ranks
    dist.all_gather_object(shards, mine)
    manifest_key = key("manifest.json")
    if rank == 0:
        manifest = CheckpointManifest(step=step, fence=fence, shards=[shard for shard in shards if shard])
        store.put_once(manifest_key, manifest.model_dump_json().encode())
    dist.barrier()
    return manifest_key


@torch.no_grad()
def read(model_engine: Any, store: ObjectStore, manifest_key: str) -> int:
    """Load a checkpoint into a fresh engine, whatever number of ranks wrote it; returns its step. All ranks call it."""
    manifest = CheckpointManifest.model_validate_json(store.get(manifest_key))
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for shard in manifest.shards:
        for name, tensor in load(store.get(shard.key, shard.sha256)).items():
            kind_and_name, start = name.rsplit("/", 1)
            pieces.setdefault(kind_and_name, []).append((int(start), tensor))
    whole = {name: torch.cat([tensor for _, tensor in sorted(parts, key=_by_start)]) for name, parts in pieces.items()}
    _warm_up(model_engine.optimizer, manifest.step)
    for fragment in fragments(model_engine):
        for kind in KINDS:
            part = whole[f"{kind}/{fragment.name}"].narrow(0, fragment.start, fragment.length)
            fragment.views[kind].copy_(part)
    for name, parameter in model_engine.module.named_parameters():
        if f"fp32/{name}" in whole:
            parameter.copy_(whole[f"fp32/{name}"].view(parameter.shape))
    model_engine.global_steps = manifest.step
    return manifest.step


def _by_start(piece: tuple[int, Tensor]) -> int:
    return piece[0]


def _warm_up(zero: Any, step: int) -> None:
    """Create Adam's state, which PyTorch makes at the first step, so that there is something to copy into."""
    for flat in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
