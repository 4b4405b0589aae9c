"""An arm: Booth's whole loop, with a desk that hears every step's progress as the line to the control plane does.

python tests/benchmarks/booth_loop.py WORKLOAD BASE STAGE, as a duel starts it.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from turns import Turn
from workload import Workload

from booth.contract.jobs import Progress
from booth_service.diffusion.components import Components, load_components
from booth_service.plan import Plan
from booth_service.settings import torchrun_place
from booth_service.training.engine import Ema, Engine
from booth_service.training.worker import Task, train


class TurnDesk:
    """Implements `Desk`. Every progress is made into JSON, which is more than the real line does of each step."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.losses: list[float] = []
        self.said = ""

    def say(self, progress: Progress, note: str | None = None) -> None:
        self.said = progress.model_dump_json()
        if progress.loss is not None:
            self.losses.append(progress.loss)

    def wants_stop(self) -> bool:
        self.turn.step_done()
        return False

    def has_enough(self) -> bool:
        return False

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        self.turn.begin()
        return 0

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        pass

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        pass


def run(workload: Workload, zero_stage: int) -> None:
    """Train on this process group, a share of the rows on each rank. Stage 0 on one rank is the plain engine."""
    params, ranks = workload.params, dist.get_world_size()
    plan = Plan(ranks, False, 1.0, 2 * params.train_batch_size // ranks, 1, zero_stage, "benchmark")
    turn = Turn.from_environment()
    desk = TurnDesk(turn)
    train(Task(params, plan, load_components(workload.base), workload.photos(), workload.class_images()), desk)
    turn.end(desk.losses)


def main(folder: str, base: str, zero_stage: str) -> int:
    rank, ranks, _ = torchrun_place()
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    run(Workload(Path(folder), Path(base)), int(zero_stage))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
