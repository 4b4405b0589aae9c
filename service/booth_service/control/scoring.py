"""How a job is scored: from what its owner asked and what the recipe says to the cases, steps and encoders of it."""

from collections.abc import Callable
from functools import partial

from sqlalchemy.orm import Session

from booth.contract import limits, prompt_sets
from booth.contract.jobs import JobSpec, Method, Params, PromptCase, Scoring, ScoringOptions
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth.contract.prompt_sets import PromptSetError
from booth_service.control import encoder_suites
from booth_service.control.records import EncoderSuite

BASE_STEP, END = 0, -1
_FIELD = "options.scoring"
_PHRASES: dict[Method, Callable[[Params], str | None]] = {
    "dreambooth": lambda params: None,  # "<token> <noun>", whatever noun it is scored with
    "textual_inversion": lambda params: params.token,
    "ip_adapter": lambda params: params.class_noun,
}
"""What names the subject in prompts."""


class Refused(Exception):
    """What is wrong with how a job is to be scored."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__(problems)
        self.problems = problems


def resolve_scoring(session: Session, spec: JobSpec, params: Params, recipe: Recipe) -> Scoring | None:
    """How the job is scored, or None where it is not. Raises Refused with every bad field."""
    chooses = params.select_checkpoint == "fidelity"
    asked = spec.options.scoring
    if asked is None and not chooses:
        return None
    asked = asked or ScoringOptions()
    suite_name = asked.suite or recipe.encoders
    suite = encoder_suites.find(session, suite_name)
    problems = [*_suite_problems(session, suite, suite_name), *_unscorable(params), *_step_problems(asked, params)]
    try:
        cases = cases_of(asked, params, recipe)
    except Refused as refused:
        problems += refused.problems
    if problems:
        raise Refused(problems)
    assert suite is not None
    return Scoring(
        steps=steps_of(asked, params, chooses=chooses),
        cases=cases,
        class_prompt=f"a photo of a {asked.noun}" if asked.noun else params.class_prompt,
        num_images=asked.num_images,
        num_class_images=asked.num_class_images,
        seed=asked.seed,
        guidance_scale=recipe.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        num_inference_steps=asked.num_inference_steps or recipe.score_num_inference_steps or recipe.num_inference_steps,
        scheduler=asked.scheduler,
        suite=suite.name,
        suite_id=suite.id,
    )


def steps_of(asked: ScoringOptions, params: Params, *, chooses: bool) -> list[int]:
    """The scored steps in order, each once; -1 is the end, and so is every step of a job that trains nothing.

    A job that chooses among its checkpoints, and says no more than the end, scores those of the interval: all of them,
    or every n-th where they are too many. The frozen base is always among them then: it is the floor of the choice.
    """
    steps = {params.end_step if step == END else min(step, params.end_step) for step in asked.steps}
    if not chooses:
        return sorted(steps)
    if set(asked.steps) == {END}:
        of_interval = range(params.checkpoint_interval_steps, params.steps, params.checkpoint_interval_steps)
        every = -(-len(of_interval) // (limits.MAX_SCORE_STEPS - 2)) or 1
        steps |= set(of_interval[every - 1 :: every])
    return sorted(steps | {BASE_STEP})


def cases_of(asked: ScoringOptions, params: Params, recipe: Recipe) -> list[PromptCase]:
    """What is drawn of the first subject. Raises Refused, naming the field."""
    noun = asked.noun or params.class_noun
    if asked.prompts and asked.prompt_set:
        message, remedy = "There are prompts of your own too.", "Give either prompts or a prompt_set."
        raise Refused([_problem("prompt_set", asked.prompt_set, message, remedy)])
    phrase = asked.phrase or _PHRASES[params.method](params)
    field, value = ("prompts", "") if asked.prompts else ("prompt_set", asked.prompt_set or recipe.prompt_set)
    try:
        templates = asked.prompts or prompt_sets.named(value)
        made = partial(prompt_sets.cases, templates, params.token, noun, phrase=phrase, clip_text=asked.clip_text)
        made()
        field, value = "unseen", ", ".join(asked.unseen)
        return made(unseen=asked.unseen)
    except PromptSetError as error:
        raise Refused([_problem(field, value, error.message, error.remedy)]) from error


def _suite_problems(session: Session, suite: EncoderSuite | None, name: str) -> list[FieldProblem]:
    if suite is not None:
        return []
    there = ", ".join(each.name for each in encoder_suites.current(session)) or "none"
    remedy = f"{encoder_suites.how_to_get(name)}. Suites that are there: {there}."
    return [_problem("suite", name, f"There is no suite of encoders {name!r}.", remedy)]


def _unscorable(params: Params) -> list[FieldProblem]:
    if params.optimizer == "adamw":
        return []
    message = f"Runs with optimizer {params.optimizer} have no checkpoints, whose weights are what is scored."
    return [FieldProblem(field=_FIELD, value=params.optimizer, message=message, remedy='Use optimizer "adamw".')]


def _step_problems(asked: ScoringOptions, params: Params) -> list[FieldProblem]:
    if not asked.steps:
        return [_problem("steps", "[]", "There is no step to score.", "Name some; -1 is the end of the run.")]
    if not params.steps:
        return []
    remedy = f"Name steps up to {params.steps}; -1 is the end."
    return [
        _problem("steps", str(step), f"The job ends after {params.steps} steps.", remedy)
        for step in asked.steps
        if step > params.steps
    ]


def _problem(field: str, value: str, message: str, remedy: str) -> FieldProblem:
    return FieldProblem(field=f"{_FIELD}.{field}", value=value, message=message, remedy=remedy)
