"""The paper's evaluation on a folder in the layout of google/dreambooth, as the cells of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from booth import dreambooth_folder, sweep
from booth.contract import prompt_sets
from booth.contract.jobs import Method, ScoringOptions
from booth.contract.models import BaseModelRecord
from booth.contract.problems import FieldProblem
from booth.contract.prompt_sets import PromptSetError
from booth.dreambooth_folder import BenchmarkSubject, DreamBoothFolder
from booth.errors import ValidationError
from booth.subjects import Subject

PAPER_SETS = ("objects", "live")
FLOOR_AND_END = [0, -1]


def plan(
    folder: str | Path,
    base_model: BaseModelRecord,
    subjects: Sequence[str] | None = None,
    methods: Sequence[Method] = ("dreambooth",),
    *,
    token: str | None = None,
    prompt_set: str | None = None,
    num_prompts: int | None = None,
    num_images: int = 4,
    dials: Mapping[str, Any] | None = None,
    scoring: ScoringOptions | None = None,
    seeds: Sequence[int] = (0,),
    name: str | None = None,
    cells_at_once: int | None = None,
) -> sweep.Plan:
    """A job for each subject and method. Raises ValidationError or ImageValidationError, naming all that is wrong."""
    found = dreambooth_folder.read(folder, subjects)
    by_name = {each.name: each for each in found.subjects}
    asked = scoring or ScoringOptions(steps=FLOOR_AND_END)
    named = prompt_set or _own_set(base_model)
    templates = {each.name: templates_of(found, each, named)[:num_prompts] for each in found.subjects}

    def of_subject(method: Method, subject: str) -> dict[str, Any]:
        told = {"num_images": num_images, "prompts": templates[subject], "prompt_set": None}
        return {"method": method, "scoring": asked.model_copy(update=told)}

    def arm(method: Method) -> Any:
        return lambda subject: of_subject(method, subject)

    return sweep.plan(
        "benchmark",
        {each: Subject(list(of.photos), token, of.class_noun) for each, of in by_name.items()},
        {method: arm(method) for method in methods},
        dials={"base_model": base_model.name, **(dials or {})},
        scoring=asked,
        seeds=seeds,
        name=name or f"{found.path.name} on {base_model.name}",
        cells_at_once=cells_at_once,
    )


def templates_of(folder: DreamBoothFolder, subject: BenchmarkSubject, named: str | None) -> list[str]:
    """The folder's own prompts for an object or a live subject, or those of the named set. Raises ValidationError."""
    if named is None:
        return list(folder.prompts_of(subject))
    try:
        return prompt_sets.named(named)
    except PromptSetError as error:
        problem = FieldProblem(field="prompt_set", value=named, message=error.message, remedy=error.remedy)
        raise ValidationError([problem]) from None


def _own_set(base_model: BaseModelRecord) -> str | None:
    """The prompt set of a base model that knows no others; None where it can draw the paper's."""
    own = base_model.recipe.prompt_set
    return None if own in PAPER_SETS else own
