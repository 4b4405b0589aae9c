"""What all ranks learn of a step: sums over ranks in one small tensor, read one step late."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from booth.contract.jobs import TRAINING_PHASE, Params, Progress
from booth_service.data.dataset import Row
from booth_service.errors import AttemptEnded, NotFinite
from booth_service.training.batches import Batch
from booth_service.training.engine import StepResult

LOSS, INSTANCE, PRIOR, STOP, ENOUGH, HEAD = range(6)


class Tally:
    """Collects one step's figures on the device, without waiting for it.

    Layout: loss, instance sum, prior sum, stop, enough, then one peak memory for each rank, then one flag for each row
    of the step that is 1 where the row's loss was not finite.
    """

    def __init__(self, device: torch.device, rank: int, ranks: int, num_rows: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._sums = torch.zeros(HEAD + ranks + num_rows, dtype=torch.float64, device=device)

    def add(self, batch: Batch, losses: Tensor, loss: Tensor) -> None:
        """One micro-batch: row losses (R,) before the rows' weights, and its share of the step's loss."""
        losses = losses.detach().double()
        self._sums[LOSS] += loss.detach().double()
        self._sums[INSTANCE] += torch.where(batch.is_class, 0, losses).sum()
        self._sums[PRIOR] += torch.where(batch.is_class, losses, 0).sum()
        self._sums[HEAD + self._ranks + batch.numbers] = (~torch.isfinite(losses)).double()

    def close(self, stop: bool, enough: bool, peak_memory_bytes: int, result: StepResult) -> "Figures":
        """Sum over ranks; nothing is read yet."""
        self._sums[STOP] = float(stop)
        self._sums[ENOUGH] = float(enough)
        self._sums[HEAD + self._rank] = float(peak_memory_bytes)
        if self._ranks > 1:
            dist.all_reduce(self._sums)
        return Figures(self._sums, result)


@dataclass(frozen=True)
class Figures:
    """A step's figures, still on the device."""

    sums: Tensor
    result: StepResult


@dataclass
class Report:
    """Reads figures and says what they mean. `began_s` is when the step numbered `first_step` began; `has_enough` says,
    on all ranks alike, that the step read last was to be one of the last.

    `rows_of` gives all rows of a step, to name those that went wrong.
    """

    params: Params
    ranks: int
    rows_of: Callable[[int], list[Row]]
    flops_per_step: int = 0
    matrix_rate: float = 0.0
    first_step: int = 0
    began_s: float = field(default_factory=time.monotonic)
    has_enough: bool = False

    def read(self, step: int, figures: Figures, rates: tuple[float, float]) -> Progress:
        """The progress after step `step` (counted from 0).

        Raises, on all ranks alike, AttemptEnded where the owner wants it, NotFinite where the step was not applied.
        """
        sums = figures.sums.tolist()
        if sums[STOP] > 0:
            raise AttemptEnded("the owner asked the job to stop")
        self.has_enough = sums[ENOUGH] > 0
        grad_norm, applied = float(figures.result.grad_norm), float(figures.result.applied)
        is_bad = [flag > 0 for flag in sums[HEAD + self.ranks :]]
        if any(is_bad) or not applied:
            raise NotFinite(_not_finite(step, [row for row in self.rows_of(step) if is_bad[row.number]]))
        done, batch = step + 1, self.params.train_batch_size
        pace = (done - self.first_step) / max(1e-9, time.monotonic() - self.began_s)
        rate = self.matrix_rate * self.ranks
        return Progress(
            phase=TRAINING_PHASE,
            step=done,
            total_steps=self.params.steps,
            loss=sums[LOSS],
            instance_loss=sums[INSTANCE] / batch,
            prior_loss=sums[PRIOR] / batch if self.params.num_class_images else None,
            images_per_second=pace * len(is_bad),
            eta_s=(self.params.steps - done) / pace,
            grad_norm=grad_norm,
            learning_rate=rates[0],
            text_encoder_learning_rate=rates[1] if self.params.train_text_encoder else None,
            mfu=self.flops_per_step * self.ranks * pace / rate if rate else None,
            peak_memory_bytes=int(max(sums[HEAD : HEAD + self.ranks])),
        )


def _not_finite(step: int, bad: list[Row]) -> str:
    names = ", ".join(f"{'class image' if row.is_class else 'photo'} {row.image}" for row in bad)
    what = f"the loss of step {step + 1} is not a finite number ({names})"
    if not bad:
        what = f"the gradient of step {step + 1} is not a finite number, though its losses are"
    return f"{what}; the weights were not updated"
