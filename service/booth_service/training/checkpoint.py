"""Checkpoints that any number of ranks, at any ZeRO stage, can continue.

Each rank stores its fragments of the fp32 masters, both Adam moments and the moving average as safetensors files, the
manifest comes last. No pickle, no collective but the exchange of file records, no conversion. Everything else that a
run depends on (noise, order, rates) follows from the step, which the manifest holds.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel
from safetensors.torch import load, save
from torch import Tensor

from booth.contract.jobs import Params
from booth_service.errors import CheckpointMismatch
from booth_service.training.engine import MOMENTS, Ema, Engine, Fragment, own_fragments, trained_shapes

MAX_FILE_BYTES = 2**30
EMA = "ema"
_NOT_OF_THE_RUN = {
    "checkpoint_interval_steps",
    "sample_interval_steps",
    "scoring",
    "select_checkpoint",
    "select_patience",
}

Put = Callable[[str, bytes], str]
"""Stores a file of the checkpoint under its name and returns the key that Get will be asked with."""
Get = Callable[[str, str | None], bytes]
"""Reads a key; where a SHA-256 is given, other bytes raise."""


class FileRecord(BaseModel):
    """One file of one rank, its tensors named kind/parameter/start; all of one `kind`, where it is said."""

    key: str
    bytes: int
    sha256: str
    kind: str = ""


class CheckpointManifest(BaseModel):
    """A committed checkpoint: `step` optimizer steps are in it, of the run whose identity is `run_sha256`."""

    step: int
    fence: int
    run_sha256: str
    shapes: dict[str, list[int]]
    files: list[FileRecord]


def identity(params: Params, **inputs: Any) -> str:
    """The SHA-256 that a run's checkpoints carry: of what is trained and with which numbers, JSON values all.

    How often a run is saved or drawn, and what is made of its checkpoints, does not change it.
    """
    dumped = params.model_dump(mode="json", exclude=_NOT_OF_THE_RUN)
    return hashlib.sha256(json.dumps({"params": dumped, **inputs}, sort_keys=True).encode()).hexdigest()


def write(engine: Engine, ema: Ema | None, step: int, fence: int, run_sha256: str, put: Put) -> str:
    """Store a checkpoint and return its manifest's key. Every rank must call it; the manifest makes it real."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = []
    for number, (kind, tensors) in enumerate(_portions(engine, ema)):
        body = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        key = put(f"rank-{rank:05d}-of-{ranks:05d}-{number:03d}.safetensors", body)
        mine.append(FileRecord(key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest(), kind=kind))
    records: list[list[FileRecord]] = [[] for _ in range(ranks)]
    dist.all_gather_object(records, mine)
    manifest = CheckpointManifest(
        step=step,
        fence=fence,
        run_sha256=run_sha256,
        shapes={name: list(shape) for name, shape in trained_shapes(engine).items()},
        files=[record for of_rank in records for record in of_rank],
    )
    keys = [put("manifest.json", manifest.model_dump_json().encode()) if rank == 0 else ""]
    dist.broadcast_object_list(keys, 0)
    return keys[0]


@torch.no_grad()
def read(engine: Engine, ema: Ema | None, manifest_key: str, run_sha256: str, get: Get) -> int:
    """Load a checkpoint into a fresh engine, whatever ranks and stage wrote it; returns its step. All ranks call it.

    One file at a time is in memory. Raises CheckpointMismatch where it is of another run or incomplete.
    """
    manifest = CheckpointManifest.model_validate_json(get(manifest_key, None))
    _check(manifest, engine, run_sha256)
    engine.begin_restore(manifest.step)
    flats = _flats(engine, ema)
    own = {fragment.name: fragment for fragment in engine.fragments()}
    found = dict.fromkeys(flats, 0)
    for record in manifest.files:
        for kind, name, start, values in _tensors(record, get):
            if kind == "fp32":
                engine.put_weights(name, start, values)
            if kind in flats and name in own:
                found[kind] += _copy(own[name], flats[kind], start, values)
    wanted = sum(fragment.length for fragment in own.values())
    if short := [kind for kind, elements in found.items() if elements != wanted]:
        raise CheckpointMismatch(f"checkpoint {manifest_key} does not hold all of {', '.join(short)}")
    return manifest.step


def stored_weights(manifest_key: str, kind: str, get: Get) -> Iterator[tuple[str, int, Tensor]]:
    """Every trained parameter in pieces: its name, the first element, and 1-D fp32 values; of the masters ("fp32") or
    the moving average (EMA), whatever ranks and stage wrote them.

    One file at a time is in memory, and none that holds other things alone. Raises StorageError, and, when it is
    exhausted, CheckpointMismatch where a parameter was not whole.
    """
    manifest = CheckpointManifest.model_validate_json(get(manifest_key, None))
    missing = {name: math.prod(shape) for name, shape in manifest.shapes.items()}
    for record in manifest.files:
        if record.kind not in ("", kind):
            continue
        for of_kind, name, start, values in _tensors(record, get):
            if of_kind == kind:
                missing[name] -= values.numel()
                yield name, start, values
    if short := sorted(name for name, elements in missing.items() if elements):
        raise CheckpointMismatch(f"checkpoint {manifest_key} does not hold all of {kind} {', '.join(short[:5])}")


def _tensors(record: FileRecord, get: Get) -> Iterator[tuple[str, str, int, Tensor]]:
    """Kind, parameter, first element and values of all that a file holds."""
    for tensor_name, values in load(get(record.key, record.sha256)).items():
        kind, rest = tensor_name.split("/", 1)
        name, start = rest.rsplit("/", 1)
        yield kind, name, int(start), values


def _check(manifest: CheckpointManifest, engine: Engine, run_sha256: str) -> None:
    if manifest.run_sha256 != run_sha256:
        raise CheckpointMismatch(
            f"the checkpoint of step {manifest.step} is of a run with other photos, base model or parameters "
            f"({manifest.run_sha256[:12]}, this one is {run_sha256[:12]}); start the job anew"
        )
    shapes = {name: list(shape) for name, shape in trained_shapes(engine).items()}
    if odd := sorted(name for name in shapes | manifest.shapes if shapes.get(name) != manifest.shapes.get(name)):
        raise CheckpointMismatch(f"the checkpoint's parameters are not those of the model: {', '.join(odd[:5])}")


def _flats(engine: Engine, ema: Ema | None) -> dict[str, list[Tensor]]:
    flats = {kind: engine.flats(kind) for kind in ("fp32", *MOMENTS)}
    return flats | ({EMA: ema.flats} if ema else {})


def _portions(engine: Engine, ema: Ema | None) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """This rank's tensors by name, in portions of one kind and at most MAX_FILE_BYTES (or one tensor)."""
    for kind, flats in _flats(engine, ema).items():
        portion: dict[str, Tensor] = {}
        size = 0
        for fragment in own_fragments(engine):
            tensor = flats[fragment.flat].narrow(0, fragment.offset, fragment.length)
            if portion and size + tensor.nbytes > MAX_FILE_BYTES:
                yield kind, portion
                portion, size = {}, 0
            portion[f"{kind}/{fragment.name}/{fragment.start}"] = tensor
            size += tensor.nbytes
        if portion:
            yield kind, portion


def _copy(fragment: Fragment, flats: list[Tensor], start: int, values: Tensor) -> int:
    """Copy what `values`, elements from `start` on, hold of the fragment; returns how many elements."""
    begin, end = max(start, fragment.start), min(start + values.numel(), fragment.start + fragment.length)
    if begin >= end:
        return 0
    target = flats[fragment.flat].narrow(0, fragment.offset + begin - fragment.start, end - begin)
    target.copy_(values.narrow(0, begin - start, end - begin))
    return end - begin
