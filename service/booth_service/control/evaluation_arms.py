"""What an evaluation draws: whose models, of which prompts, beside which photos; and what of it cannot be. Every
refusal names what is wrong and what to do."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from booth.contract import prompt_sets
from booth.contract.attempts import InstancePhoto
from booth.contract.evaluation import Arm, EvaluationSettings, EvaluationSpec
from booth.contract.jobs import ClipText, Params, PromptCase, Subject
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth.contract.prompt_sets import PromptSetError
from booth.contract.serving import DrawRequest, ModelRef
from booth_service.control import encoder_suites, serving
from booth_service.control.problems import invalid
from booth_service.control.records import BaseModel, EncoderSuite, Model
from booth_service.control.views import model_record, stored_files
from booth_service.storage.s3 import ObjectStore

ARM_TIMEOUT_S = 7 * 24 * 3600.0  # what does not move is noticed long before, by the reconciler
FROZEN_BASE, DESCRIBED = "frozen base", "frozen base, described"


@dataclass(frozen=True)
class Compared:
    """A model with its base, and which of its subjects is looked at."""

    model: Model
    base: BaseModel
    subject: int

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.base.recipe)

    @property
    def params(self) -> Params:
        return Params.model_validate(self.model.params)

    @property
    def of(self) -> Subject:
        """The subject."""
        return self.params.subjects[self.subject]

    @property
    def phrase(self) -> str:
        """What names the subject in a prompt."""
        record = model_record(self.model)
        return [record.prompt_prefix, *record.more_prompt_prefixes][self.subject]


def compared(session: Session, tenant_id: str, spec: EvaluationSpec) -> list[Compared]:
    """The model, then those it is compared with. Raises not_found, or `invalid` where they do not go together."""
    found = [_compared(session, tenant_id, each, spec.subject) for each in (spec.model_id, *spec.compare)]
    first = found[0]
    problems = []
    for place, each in enumerate(found):
        field = "model_id" if place == 0 else f"compare.{place - 1}"
        subjects = len(each.params.subjects)
        if spec.subject >= subjects:
            message = f"{each.model.name!r} has {subjects} subject(s), and subject is {spec.subject}."
            problems.append(_problem(field, each.model.id, message, "Count its subjects from 0."))
        if _content(each.base) != _content(first.base):
            message = f"It is of base model {each.base.name!r}, other weights than {first.base.name!r} of model_id."
            remedy = "Compare models of one base model; evaluate this one by itself."
            problems.append(_problem(field, each.model.id, message, remedy))
        if each.model.id in {other.model.id for other in found[:place]}:
            problems.append(_problem(field, each.model.id, "It is named twice.", "Name each model once."))
    if problems:
        raise invalid(problems)
    return found


def suite(session: Session, name: str) -> EncoderSuite:
    """The suite of encoders of this name. Raises `invalid`, with the command that adds it."""
    found = encoder_suites.find(session, name)
    if found is None:
        message = f"This service has no suite of encoders {name!r}, which pictures are scored with."
        raise invalid([_problem("suite", name, message, f"{encoder_suites.how_to_get(name)}.")])
    return found


def templates(spec: EvaluationSpec, recipe: Recipe) -> list[str]:
    """The prompts' templates: the user's own, or those of the set. Raises `invalid` naming every bad one."""
    problems = _text_problems(spec)
    if spec.prompts and spec.prompt_set is not None:
        message = "A prompt set is named, and prompts are given."
        problems.append(_problem("prompt_set", spec.prompt_set, message, "Give one of them."))
    for place, template in enumerate(spec.prompts):
        try:
            prompt_sets.checked(template)
        except PromptSetError as error:
            problems.append(_problem(f"prompts.{place}", template, error.message, error.remedy))
    try:
        found = spec.prompts or prompt_sets.named(spec.prompt_set or recipe.prompt_set)
    except PromptSetError as error:
        found = []
        problems.append(_problem("prompt_set", spec.prompt_set or recipe.prompt_set, error.message, error.remedy))
    problems = problems or _unseen_problems(spec, found)
    if problems:
        raise invalid(problems)
    return found


def photo_problems(store: ObjectStore, compared: Compared, photos: Sequence[InstancePhoto]) -> list[FieldProblem]:
    """Why there is nothing to compare pictures with."""
    gone = [photo.path for photo in photos if store.size(photo.key) is None]
    if photos and not gone:
        return []
    which = f"photos {', '.join(gone)} are gone" if photos else "it has no photos of this subject"
    message = f"Its job's photos are what its pictures are compared with, and {which}."
    return [_problem("model_id", compared.model.id, message, "Train the model again, from its photos.")]


def arms(settings: EvaluationSettings, compared: Sequence[Compared], photos: Sequence[InstancePhoto]) -> list[Arm]:
    """The model, those it is compared with, the frozen base, and the base with a description in the subject's place."""
    first, description = compared[0], settings.spec.description
    unseen = unseen_labels(settings.spec, settings.templates, photos)
    base = Arm(
        name=FROZEN_BASE,
        kind="base",
        request=_request(settings, serving.model_ref(first.base)),
        cases=_cases_of_base(settings, first.of.class_noun, unseen),
        class_prompt=first.of.class_prompt,
    )
    found = [
        Arm(
            name=name,
            kind="model",
            request=_request(settings, serving.model_ref(each.base, each.model)),
            cases=_cases_of_model(settings, each, first.of.class_noun, unseen),
            class_prompt=base.class_prompt,
            step=max(1, each.params.steps),
            labels={"method": each.params.method, "phrase": each.phrase},
        )
        for each, name in zip(compared, _names(compared), strict=True)
    ]
    if description is None:
        return [*found, base]
    described = _cases_of_words(settings, description, first.of.class_noun, unseen)
    changes = {"name": DESCRIBED, "kind": "described", "cases": described, "labels": {"phrase": description}}
    return [*found, base, base.model_copy(update=changes)]


def unseen_labels(spec: EvaluationSpec, templates: Sequence[str], photos: Sequence[InstancePhoto]) -> set[str]:
    """Labels whose context no photo shows: as the spec says, else, where every photo has a caption, as those do."""
    captions = [photo.caption.casefold() for photo in photos if photo.caption is not None]
    if spec.unseen or len(captions) < len(photos):
        return set(spec.unseen)
    labels = {prompt_sets.label(template) for template in templates}
    return {label for label in labels if label and not any(label.casefold() in caption for caption in captions)}


def is_unseen_told(spec: EvaluationSpec, photos: Sequence[InstancePhoto]) -> bool:
    """Whether spec or captions say which contexts no photo shows."""
    return bool(spec.unseen) or all(photo.caption is not None for photo in photos)


def told(settings: EvaluationSettings, compared: Sequence[Compared]) -> dict[str, str]:
    """With what everything is drawn, for the report."""
    spec = settings.spec
    prompts = "the user's own" if spec.prompts else spec.prompt_set or compared[0].recipe.prompt_set
    return {
        "base model": compared[0].base.name,
        "prompts": f"{prompts} ({len(settings.templates)})",
        "pictures for each prompt": str(spec.num_images),
        "pictures of the class": f"{spec.num_class_images} of {compared[0].of.class_prompt!r}",
        "seeds": f"{spec.seed} and those that follow, the same in every arm",
        "guidance scale": f"{settings.guidance_scale:g}",
        "denoising steps": f"{settings.num_inference_steps}, scheduler {spec.scheduler}",
        "size": f"{settings.resolution} x {settings.resolution} px",
        "text for CLIP-T": spec.clip_text,
    }


def _compared(session: Session, tenant_id: str, model_id: str, subject: int) -> Compared:
    model = serving.owned_model(session, tenant_id, model_id)
    return Compared(model, session.get_one(BaseModel, model.base_model_id), subject)


def _names(compared: Sequence[Compared]) -> list[str]:
    """The models' own names, with the ends of their ids where two are called alike."""
    names = [each.model.name for each in compared]
    return [
        name if names.count(name) == 1 else f"{name} ({each.model.id[-6:]})"
        for name, each in zip(names, compared, strict=True)
    ]


def _cases_of_model(settings: EvaluationSettings, compared: Compared, noun: str, unseen: set[str]) -> list[PromptCase]:
    """What the model draws is in the words it was trained with; what that is compared with has the first one's noun."""
    subject, clip_text = compared.of, settings.spec.clip_text
    is_plain = compared.phrase == f"{subject.token} {subject.class_noun}"
    phrase = None if is_plain else compared.phrase

    def cases(of: str) -> list[PromptCase]:
        return prompt_sets.cases(
            settings.templates, subject.token, of, phrase=phrase, clip_text=clip_text, unseen=unseen
        )

    kept = {"prompt", "clip_text"} if clip_text == "identifier" else {"prompt"}
    return [
        compared_with.model_copy(update=drawn.model_dump(include=kept))
        for compared_with, drawn in zip(cases(noun), cases(subject.class_noun), strict=True)
    ]


def _cases_of_base(settings: EvaluationSettings, noun: str, unseen: set[str]) -> list[PromptCase]:
    """The noun stands where the subject does, which the base has never seen."""
    clip_text: ClipText = "dropped" if settings.spec.clip_text == "dropped" else "noun"
    cases = prompt_sets.cases(settings.templates, "", noun, clip_text=clip_text, unseen=unseen)
    return [case.model_copy(update={"prompt": case.text}) for case in cases]


def _cases_of_words(settings: EvaluationSettings, description: str, noun: str, unseen: set[str]) -> list[PromptCase]:
    """The description stands where the subject does; its own article takes the place of the prompt's."""
    clip_text = settings.spec.clip_text
    cases = prompt_sets.cases(settings.templates, "", noun, phrase=description, clip_text=clip_text, unseen=unseen)
    twice = re.compile(r"\b(?:an?|the) (?=(?:an?|the) )")
    kept = {"prompt", "clip_text"} if clip_text == "identifier" else {"prompt"}
    return [case.model_copy(update=dict.fromkeys(kept, twice.sub("", case.prompt))) for case in cases]


def _request(settings: EvaluationSettings, ref: ModelRef) -> DrawRequest:
    return DrawRequest(
        model=ref,
        draws=[],
        guidance_scale=settings.guidance_scale,
        num_inference_steps=settings.num_inference_steps,
        width=settings.resolution,
        height=settings.resolution,
        scheduler=settings.spec.scheduler,
        timeout_s=ARM_TIMEOUT_S,
    )


def _content(base: BaseModel) -> set[tuple[str, str]]:
    return {(file.path, file.sha256) for file in stored_files(base.files)}


def _text_problems(spec: EvaluationSpec) -> list[FieldProblem]:
    bad = any(unicodedata.category(sign) == "Cc" for sign in spec.description or "")
    message = "It holds control characters."
    return [_problem("description", spec.description or "", message, "Remove them.")] if bad else []


def _unseen_problems(spec: EvaluationSpec, templates: Sequence[str]) -> list[FieldProblem]:
    labels = dict.fromkeys(prompt_sets.label(template) for template in templates)
    remedy = f"The labels are {', '.join(map(repr, labels))}."
    return [
        _problem(f"unseen.{place}", label, "No prompt has this label.", remedy)
        for place, label in enumerate(spec.unseen)
        if label not in labels
    ]


def _problem(field: str, value: str, message: str, remedy: str) -> FieldProblem:
    return FieldProblem(field=field, value=repr(value), message=message, remedy=remedy)
