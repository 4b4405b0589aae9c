"""Jobs of the method "ip_adapter": one photo and a class noun are all that one holds, and nothing is trained. Pure."""

from collections.abc import Iterable
from typing import Any

from booth.contract.jobs import JobSpec, TrainingOptions
from booth.contract.problems import FieldProblem
from booth_service.control.records import BaseModel

METHOD = "ip_adapter"
UNTRAINED: dict[str, Any] = {
    "steps": 0,
    "prior_loss_weight": 0.0,
    "num_class_images": 0,
    "train_text_encoder": False,
    "sample_interval_steps": 0,
    "select_checkpoint": "last",
}
"""Values of a job that trains nothing."""
_OF_TRAINING = [
    *("steps", "learning_rate", "prior_loss_weight", "num_class_images", "class_images", "class_prompt"),
    *("train_text_encoder", "train_batch_size", "seed"),
]
_USED_OPTIONS = {"ip_adapter_scale", "scoring"}


def problems_of(spec: JobSpec, base: BaseModel | None) -> list[FieldProblem]:
    """Why the job cannot be: a base model without an adapter, and what such a job has no room for."""
    found = [_no_adapter(base), _several_photos(spec), _token(spec), _several_subjects(spec)]
    return [problem for problem in found if problem is not None]


def warnings_of(spec: JobSpec) -> Iterable[str]:
    """What was given and has no effect, for nothing is trained."""
    given = [dial for dial in _OF_TRAINING if getattr(spec, dial) not in (None, [])]
    given += [name for name in TrainingOptions.model_fields if getattr(spec.options, name) is not None]
    photo = next(photo for photo in spec.images if not photo.held_out)
    given += [f"the photo's {name}" for name in ("caption", "mask") if getattr(photo, name) is not None]
    for name in given:
        if name not in _USED_OPTIONS:
            yield f'{name} has no effect with the method "{METHOD}", which trains nothing'


def _no_adapter(base: BaseModel | None) -> FieldProblem | None:
    if base is None or base.adapter_files:
        return None
    source = base.source if base.revision else "SOURCE"  # folders and buckets are the operator's own affair
    return FieldProblem(
        field="method",
        value=repr(METHOD),
        message=f"The base model {base.name!r} has no IP-Adapter, which reads the photo in place of training.",
        remedy=f"Ask the operator to add it: boothctl base-models add {base.name} {source} --ip-adapter SOURCE2.",
    )


def _several_photos(spec: JobSpec) -> FieldProblem | None:
    count = len({photo.sha256 for photo in spec.images if not photo.held_out})
    if count <= 1:
        return None
    message = f'The method "{METHOD}" reads one photo, and {count} are given.'
    remedy = "Give the photo that shows the subject best, or train on all of them with another method."
    return FieldProblem(field="images", value="", message=message, remedy=remedy)


def _token(spec: JobSpec) -> FieldProblem | None:
    if spec.token is None:
        return None
    message = f'The method "{METHOD}" teaches no token: it trains nothing.'
    remedy = f'Leave it out; prompts name the class alone, such as "a {spec.class_noun} on the beach".'
    return FieldProblem(field="token", value=repr(spec.token), message=message, remedy=remedy)


def _several_subjects(spec: JobSpec) -> FieldProblem | None:
    if not spec.more_subjects:
        return None
    message = f'The method "{METHOD}" reads one photo, so a model of it has one subject.'
    remedy = "Submit a job for each subject, or train on all of them with another method."
    return FieldProblem(field="more_subjects", value="", message=message, remedy=remedy)
