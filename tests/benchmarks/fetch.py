"""F1: a published model from S3 into tensors, ours against boto3's download_file and safetensors' load_file.

A model of Stable Diffusion 1.5's shape (UNet and text encoder, fp16, 2 GB of random bytes) lies in a SeaweedFS of its
own, its files in parts as publishing leaves them. Both arms take turns in one process and end when a byte of every page
of every tensor was read, for load_file alone only maps the file. Ours checks every byte against the recorded hashes;
the plain arm checks none, and F1h gives it the pass of SHA-256 that it lacks. There is no network between, and memory
for the server's page cache where the machine has it. Values are compared before the first turn.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from figure import at_most, line
from miniature import ROOT
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(ROOT / "tests"))
from own_s3 import own_s3
from tiny_job import PARAMS

from booth.contract.attempts import Manifest, StoredFile
from booth.contract.digests import part_ranges, sha256_of_parts
from booth_service.inference.weights import Weights, published_weights, read_manifest
from booth_service.storage.s3 import ObjectStore

TURNS = 5
PART_BYTES = 32 * 2**20
PAGE_BYTES = 4096
GOAL = at_most(0.70)


@dataclass(frozen=True)
class Spent:
    """Seconds of one arm in one turn; `cpu_s` is this process's own, without the server's."""

    wall_s: float
    cpu_s: float


def report(name: str) -> bool:
    """Measure and print F1 and F1h; True where F1 reaches its goal."""
    with tempfile.TemporaryDirectory(prefix="booth-fetch-") as place:
        folder = Path(place)
        (folder / "s3").mkdir()
        with own_s3(folder / "s3") as server:
            store = server.empty_bucket()
            manifest = stored_model(store, folder)
            key, sha256 = "manifest.json", hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
            store.put(key, manifest.model_dump_json().encode())
            arms: dict[str, Callable[[], object]] = {
                "ours": lambda: read_through(published_weights(store, read_manifest(store, key, sha256))),
                "plain": lambda: read_through(plainly(store, manifest, folder, check=False)),
                "hashed": lambda: read_through(plainly(store, manifest, folder, check=True)),
            }
            compare(
                published_weights(store, read_manifest(store, key, sha256)),
                plainly(store, manifest, folder, check=False),
            )
            spent: dict[str, list[Spent]] = {arm: [] for arm in arms}
            for turn in range(TURNS):
                for arm in sorted(arms, reverse=turn % 2 == 1):
                    spent[arm].append(timed(arms[arm]))
    total = sum(file.bytes for file in manifest.changed)
    ratios = {arm: [a.wall_s / b.wall_s for a, b in zip(spent["ours"], spent[arm], strict=True)] for arm in arms}
    print(line(name, ratios["plain"], GOAL, f"S3 to tensors over download_file + load_file, {said(spent, total)}"))
    print(line(f"{name}h", ratios["hashed"], None, "the same, where the plain arm checks the hash too"), flush=True)
    return GOAL.is_reached(statistics.median(ratios["plain"]))


def said(spent: dict[str, list[Spent]], total: int) -> str:
    """Each arm's median rate, and its CPU for a gigabyte."""
    words = []
    for arm, each in spent.items():
        wall, cpu = statistics.median(one.wall_s for one in each), statistics.median(one.cpu_s for one in each)
        words.append(f"{arm} {total / wall / 1e9:.2f} GB/s at {cpu / total * 1e9:.2f} CPU s/GB")
    return f"{total / 1e9:.2f} GB: " + ", ".join(words)


def timed(arm: Callable[[], object]) -> Spent:
    """One turn; what it made is dropped after the clock has stopped."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = arm()
    spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
    del made
    return spent


def plainly(store: ObjectStore, manifest: Manifest, folder: Path, *, check: bool) -> Weights:
    """The files by boto3 onto the disk, mapped by safetensors; the disk's copies are gone when the tensors are."""
    weights: Weights = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for file in manifest.changed:
            path = Path(place) / file.path.replace("/", "-")
            store.client.download_file(store.bucket, file.key, str(path))
            if check:
                with path.open("rb") as body:
                    hashlib.file_digest(body, "sha256")
            weights[file.path.split("/")[0]] = load_file(path)
    return weights


def read_through(weights: Weights) -> Weights:
    """A byte of every page was read, so that all of it is in memory."""
    for tensors in weights.values():
        for tensor in tensors.values():
            tensor.reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum()
    return weights


def compare(ours: Weights, theirs: Weights) -> None:
    """Raises AssertionError unless both have the same tensors, bit by bit."""
    assert {name: tensors.keys() for name, tensors in ours.items()} == {n: t.keys() for n, t in theirs.items()}
    for component, tensors in theirs.items():
        for name, tensor in tensors.items():
            assert torch.equal(ours[component][name].view(torch.int16), tensor.view(torch.int16)), name


def stored_model(store: ObjectStore, folder: Path) -> Manifest:
    """The model's files in the store, by their parts, and the manifest that names them."""
    changed = []
    for path, module in shapes():
        file = folder / "body"
        write(file, module)
        store.upload(file, path)
        digests = list(digests_of(file))
        changed.append(
            StoredFile(
                path=path, key=path, bytes=file.stat().st_size, sha256=sha256_of_parts(digests),
                part_bytes=PART_BYTES, part_sha256=digests,
            )
        )  # fmt: skip
        file.unlink()
    return Manifest(job_id="j", attempt=1, fence=1, base_model="sd15", changed=changed, unchanged=[], params=PARAMS)


def shapes() -> list[tuple[str, nn.Module]]:
    """The trained parts of Stable Diffusion 1.5, without memory."""
    config = json.loads((ROOT / "tests" / "configs" / "sd15.json").read_text())
    with torch.device("meta"):
        return [
            ("unet/diffusion_pytorch_model.safetensors", UNet2DConditionModel.from_config(config["unet"])),
            ("text_encoder/model.safetensors", CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))),
        ]


def write(path: Path, module: nn.Module) -> None:
    """A safetensors file of random bits as fp16 with the module's names and shapes, written tensor by tensor."""
    header, end = {}, 0
    state = module.state_dict()
    for name, tensor in state.items():
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as out:
        out.write(len(body).to_bytes(8, "little") + body)
        for tensor in state.values():
            out.write(random.bytes(2 * tensor.numel()))


def digests_of(path: Path) -> Iterator[str]:
    with path.open("rb") as body:
        for _, length in part_ranges(path.stat().st_size, PART_BYTES):
            yield hashlib.sha256(body.read(length)).hexdigest()
