"""Weights before and after real DreamBooth training, for C8: python tests/benchmarks/delta_weights.py FOLDER COURSE.

Writes FOLDER/0000.safetensors (the base) and one more file after each of the course's marks, all fp32. Training is
Booth's own loop on one rank: AdamW on fp32 masters, text encoder trained, prior loss, gradients clipped.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import workload
from miniature import write_miniature
from safetensors.torch import save_file
from torch import Tensor
from workload import TINYWORLD, Workload

from booth.contract.jobs import Progress
from booth_service.diffusion.components import Components, load_components
from booth_service.plan import Plan
from booth_service.training.cache import Cache
from booth_service.training.engine import Ema, Engine, gather
from booth_service.training.worker import Task, train


@dataclass(frozen=True)
class Course:
    """What is trained, at which learning rate, and after how many steps weights are kept."""

    name: str
    title: str
    learning_rate: float
    marks: tuple[int, ...]
    train_batch_size: int
    base_divisor: int | None = None  # of Stable Diffusion 1.5's widths; None: tinyworld's base model
    prior_loss_weight: float = 1.0
    lr_warmup_steps: int = 0
    resolution: int = 64
    has_goal: bool = False

    # Where latents shrink to one pixel, eight of nine weights of a convolution see nothing but padding and never move:
    # at 64 px a quarter of Stable Diffusion's weights. 128 px leave two by two, which reach all of them.

    def figure(self, name: str) -> str:
        """What the figure is called for this course: the course with the goal has the name itself."""
        return name if self.has_goal else f"{name}-{self.name}"

    def prepare(self, folder: Path) -> Workload:
        """Write base model, pictures and params."""
        base = TINYWORLD / "base_model"
        if self.base_divisor:
            base = write_miniature(folder / "base", self.base_divisor)
        made = workload.write(folder, base, self.resolution, self.marks[-1], self.train_batch_size)
        dials = {
            "learning_rate": self.learning_rate,
            "text_encoder_learning_rate": self.learning_rate,
            "prior_loss_weight": self.prior_loss_weight,
            "lr_warmup_steps": self.lr_warmup_steps,
            "checkpoint_interval_steps": self.marks[0],
            "precision": "fp32",
        }
        (folder / "params.json").write_text(made.params.model_copy(update=dials).model_dump_json())
        return made


COURSES = {
    course.name: course
    for course in (
        Course("half", "half-width SD 1.5 at 5e-6", 5e-6, (100, 400), 1, base_divisor=2, resolution=128, has_goal=True),
        Course("tinyworld-slow", "tinyworld at 5e-6", 5e-6, (100, 400), 4),
        Course(
            "tinyworld", "tinyworld as its recipe, 2e-4", 2e-4, (600,), 4, prior_loss_weight=0.5, lr_warmup_steps=20
        ),
    )
}


class KeepingDesk:
    """Implements `Desk`: keeps the whole weights at the marks, and says every tenth step on stdout."""

    def __init__(self, folder: Path, course: Course) -> None:
        self.folder, self.course, self.began_s = folder, course, time.monotonic()

    def say(self, progress: Progress, note: str | None = None) -> None:
        if progress.step % 10 == 0 or note:
            said = f"loss {progress.loss} norm {progress.grad_norm}" if progress.loss else note or progress.phase
            print(f"{time.monotonic() - self.began_s:7.1f} s  step {progress.step}  {said}", flush=True)

    def wants_stop(self) -> bool:
        return False

    def has_enough(self) -> bool:
        return False

    def encoded(self, cache: Cache) -> None:
        pass

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        self.checkpoint(engine, ema, 0)
        return 0

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        if step in (0, *self.course.marks):
            save_file(whole(engine), self.folder / f"{step:04d}.safetensors")

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        pass


def whole(engine: Engine) -> dict[str, Tensor]:
    """All trained tensors, fp32."""
    return {name: tensor.contiguous() for name, tensor in gather(engine, engine.flats("fp32"), torch.float32)}


def main(folder: str, name: str) -> int:
    place, course = Path(folder), COURSES[name]
    place.mkdir(parents=True)
    torch.set_num_threads(1)
    made = course.prepare(place)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    params = made.params
    plan = Plan(1, False, 1.0, 2 * params.train_batch_size, 1, 0, "C8")
    task = Task(params, plan, load_components(made.base), made.photos(), made.class_images())
    trained = train(task, desk := KeepingDesk(place, course))
    desk.checkpoint(trained.engine, None, params.steps)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
