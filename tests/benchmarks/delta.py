"""C8: what a fine-tune's difference to its base takes, over the full half-precision files. Every byte is brought back.

The weights are those of real training (`delta_weights`): Stable Diffusion 1.5's topology at half its widths, random
weights, AdamW at 5e-6, after 100 and 400 steps; beside it tinyworld at its recipe's rate, 40 times higher, and at 5e-6,
for its weights are trained ones. KEEP=FOLDER keeps the weights there, and finds them there again.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from delta_weights import COURSES, Course
from figure import Goal, at_most, line_of
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from booth.contract import delta as light
from booth_service.storage import delta

CHUNK_BYTES = 16 * 2**20
GOAL, STRETCH = at_most(0.5), at_most(0.33)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
COMPONENTS = ("unet", "text_encoder")


@dataclass
class Tally:
    """Bytes and CPU seconds of the chunks of a model, and what its weights did."""

    raw_bytes: int = 0
    stored_bytes: int = 0
    shares: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    is_exact: bool = True
    unchanged: int = 0
    squares: float = 0.0
    count: int = 0

    def timed(self, what: str, work: Callable[[], bytes | bytearray]) -> bytes | bytearray:
        began = time.process_time()
        result = work()
        self.cpu_s[what] = self.cpu_s.get(what, 0.0) + time.process_time() - began
        return result

    def add_chunk(self, chunk: bytes, reference: bytes) -> None:
        """Encode, decode in both ways, compare."""
        stored = bytes(self.timed("encode", lambda: delta.encode(chunk, reference)))
        self.is_exact &= self.timed("decode", lambda: delta.decode(stored, reference)) == chunk
        self.is_exact &= self.timed("without numpy", lambda: light.decode(stored, reference)) == chunk
        self.raw_bytes += len(chunk)
        self.stored_bytes += len(stored)
        self.shares.append(len(stored) / len(chunk))

    def add_drift(self, new: Tensor, old: Tensor, dtype: torch.dtype) -> None:
        """How far a tensor's masters moved, and how many weights the file's number format holds still."""
        self.squares += float((new - old).square().sum(dtype=torch.float64))
        self.unchanged += int((new.to(dtype) == old.to(dtype)).sum())
        self.count += new.numel()

    @property
    def share(self) -> float:
        return self.stored_bytes / self.raw_bytes

    def drift(self) -> str:
        return f"drift {(self.squares / self.count) ** 0.5:.1e} rms, {self.unchanged / self.count:.0%} of weights equal"

    def speeds(self) -> str:
        speeds = (f"{what} {self.raw_bytes / cpu_s / 1e9:.2f}" for what, cpu_s in self.cpu_s.items())
        return f"GB/s of a core: {', '.join(speeds)}"


def report(name: str) -> bool:
    """Train and print a line for each model, number of steps and number format. True where the goal is reached."""
    kept = os.environ.get("KEEP")
    reached = True
    with tempfile.TemporaryDirectory(prefix="booth-delta-") as scratch:
        for course in COURSES.values():
            folder = Path(kept or scratch) / course.name
            try:
                seconds = trained(course, folder)
            except RuntimeError as error:
                print(f"{course.figure(name)} ERROR {error}", flush=True)
                reached = False
                continue
            goal = GOAL if course.has_goal else None
            for mark in course.marks:
                for short, dtype in DTYPES.items():
                    tally = measured(folder, mark, dtype)
                    title = f"{course.title}, {mark} steps, {short}; {tally.drift()}; {tally.speeds()}"
                    print(verdict(f"{course.figure(name)}-{short}-{mark}", tally, goal, title), flush=True)
                    reached &= tally.is_exact and (goal is None or goal.is_reached(tally.share))
            print(f"{course.figure(name)} trained in {seconds:.0f} s", flush=True)
    return reached


def verdict(name: str, tally: Tally, goal: Goal | None, title: str) -> str:
    """The share of all bytes, the middle half of the chunks' shares, and whether all bytes came back."""
    exact = "bit-exact" if tally.is_exact else "NOT EXACT"
    stretch = f"stretch <={STRETCH.value:.2f} {'reached' if STRETCH.is_reached(tally.share) else 'not reached'}"
    return line_of(name, tally.share, tally.shares, goal, "; ".join([exact, *([stretch] if goal else []), title]))


def trained(course: Course, folder: Path) -> float:
    """The folder holds the weights at all marks; returns the seconds that it took."""
    began = time.monotonic()
    if not (folder / f"{course.marks[-1]:04d}.safetensors").exists():
        command = [sys.executable, str(Path(__file__).with_name("delta_weights.py")), str(folder), course.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"training {course.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - began


def measured(folder: Path, mark: int, dtype: torch.dtype) -> Tally:
    """All chunks of the files that a job would publish, against those of the base in the same number format."""
    tally = Tally()
    for component in COMPONENTS:
        for new, old in pairs(folder, mark, component):
            tally.add_drift(new, old, dtype)
        ours, theirs = (half_file(folder / f"{number:04d}.safetensors", component, dtype) for number in (mark, 0))
        for start in range(0, len(ours), CHUNK_BYTES):
            tally.add_chunk(ours[start : start + CHUNK_BYTES], theirs[start : start + CHUNK_BYTES])
    return tally


def pairs(folder: Path, mark: int, component: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Each trained tensor with what it was, fp32."""
    with (
        safe_open(folder / f"{mark:04d}.safetensors", "pt") as new,
        safe_open(folder / "0000.safetensors", "pt") as old,
    ):
        for name in new.keys():  # noqa: SIM118 (a safe_open is not a mapping)
            if name.startswith(f"{component}."):
                yield new.get_tensor(name), old.get_tensor(name)


def half_file(path: Path, component: str, dtype: torch.dtype) -> bytes:
    """A component's safetensors file, as published."""
    with safe_open(path, "pt") as weights:
        names = [name for name in weights.keys() if name.startswith(f"{component}.")]  # noqa: SIM118
        body: bytes = save({name: weights.get_tensor(name).to(dtype) for name in names}, metadata={"format": "pt"})
    return body


if __name__ == "__main__":
    sys.exit(0 if report("C8") else 1)
