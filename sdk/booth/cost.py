"""What a group will cost, before it is asked for: its jobs, steps and pictures, and the time that jobs like it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from booth.contract import prompt_sets
from booth.contract.groups import CellSpec, GroupSpec
from booth.contract.jobs import JobRecord, ScoringOptions
from booth.contract.models import BaseModelRecord, Recipe


@dataclass(frozen=True)
class Cost:
    """Numbers of a group. `class_images` are those of all classes, should none be there yet; `device_s` are seconds of
    one device, None where no job of the base model has told how fast it is."""

    cells: int
    steps: int
    pictures: int
    class_images: int
    device_s: float | None

    def __str__(self) -> str:
        said = f"{self.cells} jobs, {self.steps:,} optimizer steps, {self.pictures:,} scored pictures, up to "
        said += f"{self.class_images:,} class images"
        if self.device_s is None:
            return f"{said}; how long that takes is not known: no job of the base model has been run here"
        return f"{said}; about {self.device_s / 3600:.1f} hours of one device by the last jobs of the base model"


def of_group(spec: GroupSpec, base_models: Sequence[BaseModelRecord], finished: Sequence[JobRecord]) -> Cost:
    """The cost of all cells, with the recipes' values where a cell has none. `finished` are jobs that succeeded."""
    known = {record.name: record for record in base_models}
    default = next((record for record in base_models if record.is_default), None)
    steps = pictures = 0
    device_s: float | None = 0.0
    sets: dict[tuple[str, str], int] = {}
    for cell in spec.cells:
        record = known.get(cell.job.base_model or "", default)
        if record is None:
            continue  # the service names those that it has
        recipe = record.recipe
        own_steps = _steps_of(cell, recipe)
        steps += own_steps
        pictures += pictures_of(cell, recipe)
        if (count := class_images_of(cell, recipe)) is not None:
            address = (record.name, cell.job.class_prompt or cell.job.class_noun)
            sets[address] = max(count, sets.get(address, 0))
        pace = seconds_per_step(finished, record.name)
        device_s = None if device_s is None or pace is None else device_s + pace * own_steps
    return Cost(len(spec.cells), steps, pictures, sum(sets.values()), device_s)


def pictures_of(cell: CellSpec, recipe: Recipe) -> int:
    """Pictures that scoring a cell draws."""
    scoring = cell.job.options.scoring
    if scoring is None:
        return 0
    each = _prompts_of(scoring, recipe) * scoring.num_images + scoring.num_class_images
    return each * len(set(scoring.steps))


def class_images_of(cell: CellSpec, recipe: Recipe) -> int | None:
    """Class images that a cell asks the base model for; None where it needs none."""
    if cell.job.method not in (None, "dreambooth"):
        return None
    weight = recipe.prior_loss_weight if cell.job.prior_loss_weight is None else cell.job.prior_loss_weight
    count = recipe.num_class_images if cell.job.num_class_images is None else cell.job.num_class_images
    return count if weight and count and not cell.job.class_images else None


def seconds_per_step(finished: Sequence[JobRecord], base_model: str) -> float | None:
    """What a step took in the median, start and end of its job included; None where there is no such job."""
    paces = [
        (job.finished_at - job.started_at).total_seconds() / job.params.steps
        for job in finished
        if job.params.base_model == base_model and job.started_at and job.finished_at and job.params.steps
    ]
    return median(paces) if paces else None


def _steps_of(cell: CellSpec, recipe: Recipe) -> int:
    if cell.job.method == "ip_adapter":
        return 0
    of_inversion = recipe.inversion_steps if cell.job.method == "textual_inversion" else None
    return cell.job.steps or of_inversion or recipe.steps


def _prompts_of(scoring: ScoringOptions, recipe: Recipe) -> int:
    if scoring.prompts:
        return len(scoring.prompts)
    sets: Mapping[str, Sequence[str]] = prompt_sets.SETS
    return len(sets.get(scoring.prompt_set or recipe.prompt_set, ()))
