"""C7: a model of Stable Diffusion 1.5's shape from trained weights into SeaweedFS, by 1, 2 and 4 ranks.

The other arm is `save_pretrained` by one process and boto3's `upload_file` of each file. Every run has a server of its
own; the processes are started once, and what is timed lies between two barriers. All processes map the same
half-precision weights. Beside it the store's ceiling: the same bytes from memory in plain
parallel PUTs, without digests. Figures are wall time, for the store's time counts too: leave the machine alone.
"""

import math
import mmap
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import UNet2DConditionModel
from figure import at_least, at_most, line
from miniature import ROOT, shrunk_config
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(ROOT / "tests"))
from own_s3 import own_s3
from whole_weights import WholeWeights

from booth_service.publish.export import pieces_of
from booth_service.publish.gang import Gang
from booth_service.publish.layout import TensorInfo, lay_out
from booth_service.publish.upload import PARTS_UNDER_WAY, threads_of_rank, upload_files
from booth_service.storage.s3 import LINK_S, ObjectStore
from booth_service.storage.transfer import Link

TURNS = 3
RANKS = (1, 2, 4)
DTYPE = torch.float16
FILES = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
PUT_BYTES = 32 * 2**20
SAMPLE_S = 0.02
MB, GB = 10**6, 10**9
FASTER, OVER_CEILING = at_least(2.0), at_most(1.2)


@dataclass(frozen=True)
class Run:
    """What a run took: seconds by the clock, CPU seconds and written bytes of all its processes, CPU seconds of the
    store beside them, and the most memory that one of them took beyond what it had before."""

    wall_s: float
    cpu_s: float
    store_cpu_s: float
    disk_bytes: int
    memory_bytes: int


def report(name: str, divisor: int = 1, turns: int = TURNS) -> bool:
    """Measure in turns and print; True where every goal is reached."""
    with tempfile.TemporaryDirectory(prefix="booth-publish-") as made:
        folder = Path(made)
        total = make_weights(folder, divisor)
        arms = ["saved", *(f"ranks-{ranks}" for ranks in RANKS), "ceiling"]
        runs: dict[str, list[Run]] = {arm: [] for arm in arms}
        with Workers(folder, divisor) as workers:
            for _ in range(turns):
                for arm in arms:
                    runs[arm].append(workers.measure(arm))
    reached = []
    for ranks in RANKS:
        ours = runs[f"ranks-{ranks}"]
        faster = [saved.wall_s / mine.wall_s for saved, mine in zip(runs["saved"], ours, strict=True)]
        over = [mine.wall_s / ceiling.wall_s for mine, ceiling in zip(ours, runs["ceiling"], strict=True)]
        print(line(f"{name}-{ranks}", faster, FASTER, f"save_pretrained + upload_file over {ranks} ranks"))
        print(line(f"{name}-{ranks} ceiling", over, OVER_CEILING, f"{ranks} ranks over plain parallel PUTs"))
        reached += [FASTER.is_reached(statistics.median(faster)), OVER_CEILING.is_reached(statistics.median(over))]
        allowed = threads_of_rank(ranks) * max(layout_parts(divisor)) + 64 * MB
        memory, disk = max(run.memory_bytes for run in ours), max(run.disk_bytes for run in ours)
        reached += [disk < MB, memory <= allowed]
        print(f"{name}-{ranks} {disk} bytes on disk, extra memory of a rank {memory // MB} of {allowed // MB} MB")
    for arm, measured in runs.items():
        each = [[getattr(run, what) for run in measured] for what in ("wall_s", "cpu_s", "store_cpu_s")]
        wall, cpu, store_cpu = (statistics.median(values) / (total / GB) for values in each)
        print(f"{name} {arm}: s/GB {wall:.1f} by the clock, {cpu:.2f} CPU of clients, {store_cpu:.2f} CPU of the store")
    return all(reached)


def modules(divisor: int) -> dict[str, nn.Module]:
    """The two trained parts, without memory."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(**shrunk_config("unet", divisor)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shrunk_config("text_encoder", divisor))),
        }


def layout_parts(divisor: int) -> list[int]:
    """Part sizes of the two files."""
    return [min(layout.part_bytes, layout.total_bytes) for layout in _layouts(divisor).values()]


def _layouts(divisor: int) -> dict[str, Any]:
    made = {}
    for part, module in modules(divisor).items():
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        infos = {name: TensorInfo("F16", tuple(shape)) for name, shape in shapes.items()}
        made[part] = lay_out(Path(part, FILES[part]), infos, shapes, DTYPE)
    return made


def make_weights(folder: Path, divisor: int) -> int:
    """Weights that are no numbers of any model, in files that every process maps; a base folder of headers alone."""
    block = torch.randn(16 * 2**20, generator=torch.Generator().manual_seed(0)).to(DTYPE).numpy().tobytes()
    total = 0
    for part, layout in _layouts(divisor).items():
        count = sum(math.prod(slot.info.shape) for slot in layout.slots) * 2
        with (folder / f"{part}.weights").open("wb") as file:
            for start in range(0, count, len(block)):
                file.write(block[: count - start])
        base = folder / "base" / layout.path
        base.parent.mkdir(parents=True)
        base.write_bytes(layout.header)
        os.truncate(base, layout.total_bytes)
        total += layout.total_bytes
    return total


class Workers:
    """Processes that run arms when they are told to, until the block ends."""

    def __init__(self, folder: Path, divisor: int) -> None:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # what a run frees is gone before the next one is measured
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(max(RANKS))]
        self._pipes = [ours for ours, _ in pairs]
        self._processes = [context.Process(target=_work, args=(theirs, folder, divisor)) for _, theirs in pairs]

    def __enter__(self) -> "Workers":
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def measure(self, arm: str) -> Run:
        """One run of an arm against a new server."""
        ranks = int(arm.split("-")[1]) if "-" in arm else 1
        with tempfile.TemporaryDirectory(prefix="booth-publish-s3-") as folder, own_s3(Path(folder)) as server:
            store = server.empty_bucket()
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            for rank, pipe in enumerate(self._pipes[:ranks]):
                pipe.send((rank, ranks, port, arm, store.bucket, server))
            before = _store_cpu_s()
            seen = [pipe.recv() for pipe in self._pipes[:ranks]]
            store_cpu_s = _store_cpu_s() - before
        return Run(
            max(run.wall_s for run in seen),
            sum(run.cpu_s for run in seen),
            store_cpu_s,
            sum(run.disk_bytes for run in seen),
            max(run.memory_bytes for run in seen),
        )


def _work(pipe: Any, folder: Path, divisor: int) -> None:
    torch.set_num_threads(1)
    made = modules(divisor)
    for part, module in made.items():
        _map_weights(module, folder / f"{part}.weights")
    while True:
        rank, ranks, port, arm, bucket, server = pipe.recv()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ["AWS_ACCESS_KEY_ID"] = server.credentials.access_key
        os.environ["AWS_SECRET_ACCESS_KEY"] = server.credentials.secret_key
        boto3.DEFAULT_SESSION = None  # it keeps the credentials of the server before
        store = ObjectStore(bucket, server.endpoint_url, server.region)
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        with _watched() as watched:
            ARMS[arm.split("-")[0]](made, store, folder)
            dist.barrier()
        dist.destroy_process_group()
        pipe.send(watched.run)


def _map_weights(module: nn.Module, path: Path) -> None:
    flat = torch.from_file(str(path), shared=False, size=path.stat().st_size // 2, dtype=DTYPE)
    at, state = 0, {}
    for name, parameter in module.named_parameters():
        state[name] = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    module.load_state_dict(state, strict=False, assign=True)
    flat.view(torch.uint8).numpy()[:: mmap.PAGESIZE].max()  # all of it is in memory when the clock starts


def publish(made: dict[str, nn.Module], store: ObjectStore, folder: Path) -> None:
    weights = WholeWeights({part: dict(module.named_parameters()) for part, module in made.items()})
    pieces = pieces_of(weights, folder / "base", DTYPE)
    keys = [str(file.layout.path) for file in pieces]
    upload_files(pieces, keys, store, Gang(weights.device), lambda *_: None)


def save_and_upload(made: dict[str, nn.Module], store: ObjectStore, folder: Path) -> None:
    place = folder / "saved"
    client = boto3.client("s3", endpoint_url=store.client.meta.endpoint_url, region_name="us-east-1")
    for part, module in made.items():
        module.save_pretrained(place / part)  # type: ignore[operator]
        for file in (place / part).glob("*.safetensors"):
            client.upload_file(str(file), store.bucket, str(file.relative_to(place)))
    shutil.rmtree(place)


def put_plainly(made: dict[str, nn.Module], store: ObjectStore, folder: Path) -> None:
    bodies = []
    for part in made:
        path = folder / f"{part}.weights"
        view = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy().data
        bodies += [view[start : start + PUT_BYTES] for start in range(0, len(view), PUT_BYTES)]

    def put(number: int) -> None:
        link = Link(store.upload_link(f"plain/{number}", LINK_S), {})
        store.transfer.put("plain", lambda: link, bodies[number])

    with ThreadPoolExecutor(PARTS_UNDER_WAY) as pool:
        list(pool.map(put, range(len(bodies))))


ARMS = {"ranks": publish, "saved": save_and_upload, "ceiling": put_plainly}


class _watched:
    """Clock, CPU, bytes written and peak memory of a block that all ranks enter together."""

    def __enter__(self) -> "_watched":
        dist.barrier()
        self._stop = threading.Event()
        self._memory = self._before = _anonymous_bytes()
        self._thread = threading.Thread(target=self._sample)
        self._disk, self._cpu, self._wall = _written_bytes(), time.process_time(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        disk = _written_bytes() - self._disk
        self._stop.set()
        self._thread.join()
        self.run = Run(wall, cpu, 0.0, disk, self._memory - self._before)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._memory = max(self._memory, _anonymous_bytes())


def _store_cpu_s() -> float:
    """CPU seconds so far of the server that this process started."""
    servers = [child for child in psutil.Process().children(recursive=True) if child.name() == "weed"]
    return sum(sum(server.cpu_times()[:2]) for server in servers)


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs: the mapped weights are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(text for text in lines if text.startswith("RssAnon")).split()[1]) * 1024


def _written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(text for text in lines if text.startswith("write_bytes")).split()[1])


if __name__ == "__main__":
    sys.exit(0 if report("C7", *map(int, sys.argv[1:])) else 1)
