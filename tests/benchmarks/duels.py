"""Two loops on one workload, taking turns: losses compared first, then the ratio of what each spent."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import turns
from turns import Spent, Turns, TurnsBroken
from workload import ROOT, Workload, miniature, tinyworld

STEPS_PER_TURN = 2
NUM_TURNS = 10  # the first one warms up and is not counted
STEPS = STEPS_PER_TURN * NUM_TURNS
LOSS_TOLERANCE = 1e-4


class WrongAnswer(RuntimeError):
    """The arms did not train alike, so their times say nothing."""


@dataclass(frozen=True)
class Arm:
    """A loop's program and its arguments after the workload; `ranks` processes, one thread each."""

    program: str
    arguments: tuple[str, ...] = ()
    ranks: int = 1


@dataclass(frozen=True)
class Pairs:
    """Ratios of neighbouring turns. CPU time is what holds on a busy machine; wall time is for information."""

    cpu: list[float]
    wall: list[float]


BOOTH, REFERENCE, RAY = Arm("booth_loop.py", ("0",)), Arm("reference_loop.py"), Arm("ray_worker.py")
BARE_TORCH, BARE_DEEPSPEED_0 = Arm("bare_loop.py", ("torch",)), Arm("bare_loop.py", ("0",))


def reference_over_booth() -> Pairs:
    """C1: how many times as long the reference's loop takes for the same steps, on the miniature."""
    return duel(miniature, REFERENCE, BOOTH)


def reference_over_booth_on_tinyworld() -> Pairs:
    """C1t: the same on tinyworld."""
    return duel(tinyworld, REFERENCE, BOOTH)


def ray_over_bare_torch() -> Pairs:
    """C2: Booth's loop in a Ray worker over torch alone."""
    return duel(miniature, RAY, BARE_TORCH)


def deepspeed_0_over_bare_torch() -> Pairs:
    """C2d: what the same would cost on DeepSpeed's engine at stage 0."""
    return duel(miniature, BARE_DEEPSPEED_0, BARE_TORCH)


def booth_over_deepspeed(zero_stage: int, ranks: int = 2) -> Pairs:
    """C3: Booth's loop over DeepSpeed's engine alone, on gloo ranks."""
    stage = (str(zero_stage),)
    return duel(miniature, Arm("booth_loop.py", stage, ranks), Arm("bare_loop.py", stage, ranks))


def duel(write: Callable[[Path, int], Workload], first: Arm, second: Arm, num_turns: int = NUM_TURNS) -> Pairs:
    """First over second. Raises WrongAnswer where their losses differ, TurnsBroken where an arm ends early."""
    with tempfile.TemporaryDirectory(prefix="booth-duel-") as name:
        folder = Path(name)
        workload = write(folder / "workload", STEPS_PER_TURN * num_turns)
        spent, losses = fight(workload, {"first": first, "second": second}, folder, num_turns)
    compare(losses["first"], losses["second"], STEPS_PER_TURN * num_turns)
    return pairs(spent["first"][1:], spent["second"][1:])


def compare(first: list[float], second: list[float], steps: int) -> None:
    """Raise WrongAnswer unless both trained all steps with equal losses."""
    if not len(first) == len(second) == steps:
        raise WrongAnswer(f"{len(first)} and {len(second)} losses of {steps} steps")
    for step, (one, other) in enumerate(zip(first, second, strict=True)):
        if not abs(one - other) <= LOSS_TOLERANCE:  # so that NaN is wrong too
            raise WrongAnswer(f"step {step}: loss {one:.6f} against {other:.6f}")


def pairs(first: list[Spent], second: list[Spent]) -> Pairs:
    both = list(zip(first, second, strict=True))
    return Pairs([a.cpu_s / b.cpu_s for a, b in both], [a.wall_s / b.wall_s for a, b in both])


def fight(
    workload: Workload, arms: dict[str, Arm], folder: Path, num_turns: int
) -> tuple[dict[str, list[Spent]], dict[str, list[float]]]:
    """Start every arm, let them take turns, end them."""
    meeting = Turns()
    processes: dict[str, list[subprocess.Popen[bytes]]] = {}
    try:
        for name, arm in arms.items():
            processes[name] = _start(arm, name, meeting.port, workload, folder)
        everyone = [process for group in processes.values() for process in group]
        meeting.meet({name: arm.ranks for name, arm in arms.items()}, lambda: not any(p.poll() for p in everyone))
        result = meeting.run(num_turns)
        for process in (process for group in processes.values() for process in group):
            process.wait(120)
        return result
    except (OSError, TurnsBroken) as error:
        raise TurnsBroken(f"{error}\n{_last_words(folder)}") from error
    finally:
        meeting.close()
        for process in (process for group in processes.values() for process in group):
            process.kill()
            process.wait()


def _start(arm: Arm, name: str, port: int, workload: Workload, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master_port = probe.getsockname()[1]
    program = [sys.executable, str(Path(__file__).with_name(arm.program))]
    paths = [ROOT / "tests" / "benchmarks", ROOT / "sdk", ROOT / "service"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(master_port),
        "WORLD_SIZE": str(arm.ranks),
        turns.PORT_VARIABLE: str(port),
        turns.ARM_VARIABLE: name,
        turns.STEPS_VARIABLE: str(STEPS_PER_TURN),
    }
    started = []
    for rank in range(arm.ranks):
        with (folder / f"{name}-{rank}.log").open("wb") as log:
            command = [*program, str(workload.folder), str(workload.base), *arm.arguments]
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    return started


def _last_words(folder: Path) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log")))
