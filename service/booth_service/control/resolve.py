"""From what the user asked and what the recipe says to the values that a job runs with. Pure."""

import secrets
import unicodedata
from typing import Any

from booth.contract.jobs import JobSpec, Params, TrainingOptions
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth_service.control.tokens import Vocabulary

_DIALS = [
    "steps",
    "learning_rate",
    "text_encoder_learning_rate",
    "prior_loss_weight",
    "num_class_images",
    "train_text_encoder",
    "resolution",
    "train_batch_size",
]
_OPTIONS = list(TrainingOptions.model_fields)
_SAMPLE_PLACES = ["", " on the beach"]


def resolve(spec: JobSpec, recipe: Recipe, *, base_model: str, token: str) -> Params:
    """Every value of the job: the spec's where it has one, else the recipe's. A seed is drawn where none is given."""
    values: dict[str, Any] = {dial: _first(getattr(spec, dial), getattr(recipe, dial)) for dial in _DIALS}
    values |= {option: _first(getattr(spec.options, option), getattr(recipe, option)) for option in _OPTIONS}
    if values["sample_prompts"] is None:
        values["sample_prompts"] = [f"a photo of {token} {spec.class_noun}{place}" for place in _SAMPLE_PLACES]
    if not values["prior_loss_weight"] or not values["num_class_images"]:
        values |= {"prior_loss_weight": 0.0, "num_class_images": 0}
    return Params(
        base_model=base_model,
        token=token,
        class_noun=spec.class_noun,
        instance_prompt=f"a photo of {token} {spec.class_noun}",
        class_prompt=f"a photo of a {spec.class_noun}",
        seed=_first(spec.seed, secrets.randbelow(2**31)),
        **values,
    )


def text_problems(spec: JobSpec) -> list[FieldProblem]:
    """Words that cannot be stored or shown as they are."""
    return [
        FieldProblem(field=field, value=repr(text), message="It holds control characters.", remedy="Remove them.")
        for field, text in [("class_noun", spec.class_noun), ("token", spec.token), ("name", spec.name)]
        if any(unicodedata.category(character) == "Cc" for character in text or "")
    ]


def warnings(spec: JobSpec, params: Params, recipe: Recipe, vocabulary: Vocabulary) -> list[str]:
    """What the user should know before the job starts; none of it stops the job."""
    said = []
    pieces = vocabulary.pieces(params.token)
    if len(pieces) > 1:
        rare = (recipe.rare_tokens or vocabulary.rare_tokens() or ["sks"])[0]
        said.append(
            f"token {params.token!r} is {len(pieces)} pieces of the base model's tokenizer ({' '.join(pieces)}): "
            f"a rare single token such as {rare!r} binds better"
        )
    for kind, prompt in [("instance", params.instance_prompt), ("class", params.class_prompt)]:
        if over := vocabulary.overflow(prompt):
            said.append(
                f"the {kind} prompt {prompt!r} is {over} pieces longer than the {vocabulary.max_length} that the base "
                "model's text encoder reads: its end is cut off"
            )
    distinct = len({photo.sha256 for photo in spec.images})
    if distinct < len(spec.images):
        said.append(f"{len(spec.images) - distinct} of {len(spec.images)} photos are given twice and used once")
    if distinct == 1:
        said.append("1 photo: the subject will look as it does there, and poses will vary little; 3 to 5 work better")
    if params.resolution != recipe.resolution:
        said.append(f"resolution {params.resolution} is not the {recipe.resolution} that the base model works best at")
    return said + _unused_dials(spec, params)


def _unused_dials(spec: JobSpec, params: Params) -> list[str]:
    said = []
    if not params.train_text_encoder and spec.text_encoder_learning_rate is not None:
        said.append("text_encoder_learning_rate has no effect while train_text_encoder is false")
    if params.num_class_images == 0:
        if spec.num_class_images:
            said.append("num_class_images has no effect while prior_loss_weight is 0")
        if spec.prior_loss_weight:
            said.append("prior_loss_weight has no effect while num_class_images is 0")
    return said


def _first(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
