"""From what the user asked and what the recipe says to the values that a job runs with. Pure."""

import secrets
import unicodedata
from collections.abc import Iterator
from typing import Any

from booth.contract import limits
from booth.contract.jobs import ClassImageRef, JobSpec, Params, Subject, SubjectSpec, TrainingOptions
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth_service.control import inversion, one_photo

_DIALS = [
    "steps",
    "learning_rate",
    "prior_loss_weight",
    "num_class_images",
    "train_text_encoder",
    "resolution",
    "train_batch_size",
]
_OPTIONS = [
    name for name in TrainingOptions.model_fields if name not in ("instance_prompt", "scoring", "initializer_token")
]
_SAMPLE_PLACES = ["", " on the beach"]


def resolve(spec: JobSpec, recipe: Recipe, *, base_model: str, tokens: list[str]) -> Params:
    """Every value of the job: the spec's where it has one, else the recipe's. A seed is drawn where none is given.

    `tokens`: one for each subject, the first one first; an empty one where prompts name the class noun alone.
    """
    asked: list[JobSpec | SubjectSpec] = [spec, *spec.more_subjects]
    subjects = [_subject(token, subject) for token, subject in zip(tokens, asked, strict=True)]
    if spec.method == inversion.METHOD:
        subjects[0] = inversion.subject(subjects[0])
    if spec.options.instance_prompt is not None:
        subjects[0] = subjects[0].model_copy(update={"instance_prompt": spec.options.instance_prompt})
    values: dict[str, Any] = {dial: _first(getattr(spec, dial), getattr(recipe, dial)) for dial in _DIALS}
    values |= {option: _first(getattr(spec.options, option), getattr(recipe, option)) for option in _OPTIONS}
    if spec.class_images:
        values["num_class_images"] = _distinct(spec.class_images)
    if values["sample_prompts"] is None:
        prompts = [f"{subject.instance_prompt}{place}" for place in _SAMPLE_PLACES for subject in subjects]
        values["sample_prompts"] = prompts[: limits.MAX_SAMPLE_PROMPTS]
    if spec.method == one_photo.METHOD:
        values |= one_photo.UNTRAINED
    if not values["prior_loss_weight"] or not values["num_class_images"]:
        values |= {"prior_loss_weight": 0.0, "num_class_images": 0}
    if spec.method == inversion.METHOD:
        values |= inversion.values(spec, recipe)
    return Params(
        base_model=base_model,
        **subjects[0].model_dump(),
        more_subjects=subjects[1:],
        seed=_first(spec.seed, secrets.randbelow(2**31)),
        method=spec.method or "dreambooth",
        **values,
    )


def text_problems(spec: JobSpec) -> list[FieldProblem]:
    """Words that cannot be stored or shown as they are."""
    return [
        FieldProblem(field=field, value=repr(text), message="It holds control characters.", remedy="Remove them.")
        for field, text in _texts(spec)
        if any(unicodedata.category(character) == "Cc" for character in text or "")
    ]


def token_problems(spec: JobSpec) -> list[FieldProblem]:
    """Subjects that one word would name: tokenizers of text encoders do not tell capitals from small letters."""
    asked = [("token", spec.token)]
    asked += [(f"more_subjects.{n}.token", further.token) for n, further in enumerate(spec.more_subjects)]
    first: dict[str, str] = {}
    problems = []
    for field, token in asked:
        if token is None:
            continue
        holder = first.setdefault(token.casefold(), field)
        if holder != field:
            remedy = "Give each subject a token of its own, or none to have a free one picked."
            message = f"It is the token of another subject ({holder})."
            problems.append(FieldProblem(field=field, value=repr(token), message=message, remedy=remedy))
    return problems


def class_image_problems(spec: JobSpec) -> list[FieldProblem]:
    """Own class images that are too many in all, or another number than asked for."""
    subjects = [("class_images", spec.class_images)]
    subjects += [(f"more_subjects.{n}.class_images", more.class_images) for n, more in enumerate(spec.more_subjects)]
    problems = []
    if (total := sum(len(images) for _, images in subjects)) > limits.MAX_OWN_CLASS_IMAGES:
        message = f"There are {total} in all, and {limits.MAX_OWN_CLASS_IMAGES} are the most."
        remedy = "Choose among them; 100 to 200 of a class are enough."
        problems.append(FieldProblem(field="class_images", value="", message=message, remedy=remedy))
    asked = spec.num_class_images
    for field, images in subjects:
        if images and asked is not None and asked != _distinct(images):
            message = f"{field} are {_distinct(images)} different images."
            remedy = "Leave num_class_images out: it is the number of your own class images."
            problems.append(FieldProblem(field="num_class_images", value=repr(asked), message=message, remedy=remedy))
    return problems


def held_out_problems(spec: JobSpec) -> list[FieldProblem]:
    """Subjects of which every photo is held out."""
    subjects = [("images", spec.images)]
    subjects += [(f"more_subjects.{n}.images", further.images) for n, further in enumerate(spec.more_subjects)]
    return [
        FieldProblem(
            field=field,
            value="",
            message="Every photo is held out, so that there is none to train on.",
            remedy="Hold out fewer.",
        )
        for field, photos in subjects
        if all(photo.held_out for photo in photos)
    ]


def _distinct(images: list[ClassImageRef]) -> int:
    return len({image.sha256 for image in images})


def _subject(token: str, asked: JobSpec | SubjectSpec) -> Subject:
    return Subject(
        token=token,
        class_noun=asked.class_noun,
        instance_prompt=f"a photo of {token or 'a'} {asked.class_noun}",
        class_prompt=asked.class_prompt or f"a photo of a {asked.class_noun}",
    )


def _texts(spec: JobSpec) -> Iterator[tuple[str, str | None]]:
    """Every text of the spec that the user wrote, with its place."""
    yield from [("class_noun", spec.class_noun), ("token", spec.token), ("name", spec.name)]
    yield "class_prompt", spec.class_prompt
    yield from ((f"images.{n}.caption", photo.caption) for n, photo in enumerate(spec.images))
    for number, further in enumerate(spec.more_subjects):
        place = f"more_subjects.{number}"
        yield from [(f"{place}.class_noun", further.class_noun), (f"{place}.token", further.token)]
        yield f"{place}.class_prompt", further.class_prompt
        yield from ((f"{place}.images.{n}.caption", photo.caption) for n, photo in enumerate(further.images))
    yield "options.instance_prompt", spec.options.instance_prompt
    yield "options.initializer_token", spec.options.initializer_token
    prompts = spec.options.sample_prompts or []
    yield from ((f"options.sample_prompts.{n}", prompt) for n, prompt in enumerate(prompts))


def _first(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
