"""S1: from submit to the first optimizer step, on the one-machine stack, cold and warm, split into parts.

Cold is the first job of a fresh stack, warm a second one of the same class right after it. The parts are what a client
sees of the job's progress, asked for ten times a second; the line to the control plane speaks about once a second, so
a part is exact to a second. For information: what goes on in a part depends on what else the machine does.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from miniature import ROOT

import booth
from booth.contract.jobs import JobRecord

sys.path.insert(0, str(ROOT / "tests"))
from one_machine import OneMachine

STEPS, CLASS_IMAGES = 4, 8
POLL_S = 0.1
TIMEOUT_S = 400.0

# What a job is at the beginning of each part, in order, and what happens in it.
PARTS = {
    "queued": "in the queue until Ray is asked for a driver",
    "preparing": "Ray starts the driver: supervisor, process, imports, brief, plan",
    "class images": "class images: actors, their imports, drawing",
    "starting ranks": "Ray Train starts the gang: controller, processes, imports",
    "loading the base model": "base model from S3 into rank 0",
    "encoding pictures": "VAE encodes pictures; engine is made",
    "training": "first step, and the word of it",
}
# Equal for every job of a base model, so that a cluster could keep them warm between jobs.
COULD_BE_KEPT = ("preparing", "starting ranks", "loading the base model")


Marks = list[tuple[str, float]]


def report(name: str) -> bool:
    """Run both jobs on a stack of its own and print a line and its parts for each. Always True: there is no goal."""
    with tempfile.TemporaryDirectory(prefix="booth-startup-") as folder:
        machine = OneMachine(Path(folder) / "data")
        machine.start()
        try:
            for kind in ("cold", "warm"):
                print("\n".join(lines(f"{name} {kind}", timeline(machine))), flush=True)
        finally:
            machine.stop()
    for what, modules in (("driver", "booth_service.driver"), ("rank", "booth_service.training.rank")):
        print(f"{name} imports of a {what}: {import_s(modules):.1f} s in a fresh interpreter", flush=True)
    return True


def timeline(machine: OneMachine, class_noun: str = "teapot", class_images: int = CLASS_IMAGES) -> Marks:
    """Seconds after the submit at which a job was first seen at the beginning of each part, and at its first step."""
    client = booth.Client(machine.base_url, machine.api_key)
    photos = sorted((ROOT / "examples" / "tinyworld" / "subjects" / "teapot").glob("*.png"))
    began = time.monotonic()
    options = booth.TrainingOptions(lr_warmup_steps=0)
    submitted = client.personalize(
        photos, "sks", class_noun, steps=STEPS, num_class_images=class_images, seed=1, options=options
    )
    marks: dict[str, float] = {"queued": time.monotonic() - began}
    path = f"/v1/jobs/{submitted.id}"
    while "first step" not in marks:
        part = part_of(JobRecord.model_validate(machine.get(path)))
        marks.setdefault(part, time.monotonic() - began)
        if time.monotonic() - began > TIMEOUT_S:
            raise TimeoutError(f"{submitted.id} made no step in {TIMEOUT_S:.0f} s; seen: {', '.join(marks)}")
        time.sleep(POLL_S)
    submitted.wait(timeout_s=TIMEOUT_S)
    return list(marks.items())


def part_of(job: JobRecord) -> str:
    """The part that a job is in, or "first step" once one was made."""
    if job.status.is_final and not job.progress.step:
        raise RuntimeError(f"{job.id} ended as {job.status} before its first step: {job.error}")
    phase = job.progress.phase
    if phase not in PARTS and phase != "queued":
        return "first step"
    if phase == "training" and job.progress.step:
        return "first step"
    return ("preparing" if job.attempt else "queued") if phase == "queued" else phase


def lines(name: str, marks: Sequence[tuple[str, float]]) -> list[str]:
    """The whole, what of it could have been kept, and each part with its seconds."""
    ends = [at for _, at in marks[1:]]
    spent = {part: end - at for (part, at), end in zip(marks, ends, strict=False)}
    kept = sum(spent.get(part, 0.0) for part in COULD_BE_KEPT)
    head = f"{name} {marks[-1][1]:.1f} s from submit to first step, {kept:.1f} s of it in what could be kept warm"
    parts = [f"  {seconds:5.1f} s  {PARTS[part]}" for part, seconds in spent.items()]
    return [f"{head}", f"  {marks[0][1]:5.1f} s  submit: photos checked and uploaded", *parts]


def import_s(module: str) -> float:
    """CPU seconds to import a module in a fresh interpreter."""
    program = f"import time; import {module}; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])
