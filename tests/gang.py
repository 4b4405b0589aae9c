"""Runs the real training loop on several gloo ranks, each a process, without Ray."""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from booth.contract.attempts import StoredFile
from booth.contract.jobs import TRAINING_PHASE, Progress
from booth.contract.states import JobState
from booth_service.training.rank import WorkerConfig, train_loop_per_worker


class Recorder:
    """Stands where the line to the control plane is, and keeps what was said in a file of JSON lines."""

    def __init__(self, path: Path, desired: str = "run") -> None:
        self.path, self.desired = path, desired

    def __call__(self, state: JobState, progress: Progress) -> "Recorder":
        return self

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, progress: Progress, **said: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**progress.model_dump(), **said}) + "\n")

    def progress(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@dataclass(frozen=True)
class Outcome:
    """What a run left: exported files, and the losses of its steps."""

    files: list[StoredFile]
    losses: dict[int, tuple[float, float, float | None]]
    checkpoints: list[str]


def run_gang(config: WorkerConfig, folder: Path) -> Outcome:
    """Train with config.plan.ranks processes; raises what a rank raised."""
    recorder = Recorder(folder / "said.jsonl", getattr(config.pulse, "desired", "run"))
    recorder.path.unlink(missing_ok=True)
    whole = WorkerConfig(**{**vars(config), "pulse": recorder})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(whole, port, str(folder)), nprocs=config.plan.ranks)
    said = recorder.progress()
    trained = [p for p in said if p["phase"] == TRAINING_PHASE and p["loss"] is not None]
    losses = {p["step"]: (p["loss"], p["instance_loss"], p["prior_loss"]) for p in trained}
    files = [StoredFile(**file) for file in json.loads((folder / "files.json").read_text())]
    return Outcome(files, losses, [p["checkpoint_key"] for p in said if p.get("checkpoint_key")])


def _rank(rank: int, config: WorkerConfig, port: int, folder: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(config.plan.ranks),
    )
    dist.init_process_group("gloo", rank=rank, world_size=config.plan.ranks)
    files = train_loop_per_worker({"worker": config})
    if rank == 0:
        Path(folder, "files.json").write_text(json.dumps([file.model_dump() for file in files or []]))
    dist.destroy_process_group()
