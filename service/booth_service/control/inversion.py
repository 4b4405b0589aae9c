"""Jobs of Textual Inversion on their way in: their values, what is refused, and what has no effect. Pure."""

from collections.abc import Iterator
from typing import Any

from booth.contract.jobs import JobSpec, Subject
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth_service.control.tokens import Vocabulary

METHOD = "textual_inversion"


def subject(first: Subject) -> Subject:
    """The subject as the method has it: the token takes the noun's place (Gal et al. 2022, section 4)."""
    return first.model_copy(update={"instance_prompt": f"a photo of {first.token}"})


def values(spec: JobSpec, recipe: Recipe) -> dict[str, Any]:
    """The dials that are this method's own, or mean nothing to it. Steps and rate are there (`base_problems`)."""
    return {
        "steps": spec.steps or recipe.inversion_steps,
        "learning_rate": spec.learning_rate or recipe.inversion_learning_rate,
        "train_batch_size": spec.train_batch_size or recipe.inversion_train_batch_size or recipe.train_batch_size,
        "caption_templates": [] if spec.options.instance_prompt else recipe.inversion_templates,
        "initializer_token": spec.options.initializer_token,
        "train_text_encoder": False,
        "text_encoder_stop_step": None,
        "prior_loss_weight": 0.0,
        "num_class_images": 0,
    }


def spec_problems(spec: JobSpec) -> list[FieldProblem]:
    """What the method has no place for, whatever the base model."""
    if spec.method != METHOD:
        return []
    found = []
    if spec.more_subjects:
        found.append(("more_subjects", "", "It learns one subject.", "Submit a job for each subject."))
    if spec.class_images:
        remedy = "Leave them out: nothing but the token's embedding moves, so the class cannot drift."
        found.append(("class_images", "", "It has no class images.", remedy))
    if spec.num_class_images:
        remedy = "Leave it out: nothing but the token's embedding moves, so the class cannot drift."
        found.append(("num_class_images", repr(spec.num_class_images), "It has no class images.", remedy))
    if (stop := spec.options.text_encoder_stop_step) is not None:
        message = "It trains no weight of the text encoder, and nothing that could stop before the end."
        found.append(("options.text_encoder_stop_step", repr(stop), message, "Leave it out, or choose fewer steps."))
    return [_problem(*each) for each in found]


def base_problems(spec: JobSpec, recipe: Recipe, vocabulary: Vocabulary, token: str) -> list[FieldProblem]:
    """What does not go with the base model: words without an embedding of their own, a recipe that is silent."""
    if spec.method != METHOD:
        return []
    found = []
    for field, word, what in (
        ("token", token, "what is learned is the embedding of one"),
        ("options.initializer_token", spec.options.initializer_token, "one's embedding is where learning starts"),
    ):
        pieces = [] if word is None else vocabulary.pieces(word)
        if word is not None and len(pieces) != 1:
            message = f"It is {len(pieces)} pieces of the base model's tokenizer ({' '.join(pieces)}), and {what}."
            rare = next(iter(recipe.rare_tokens or vocabulary.rare_tokens()), None)
            remedy = (
                f"Use {rare!r}, or none to have one picked." if field == "token" and rare else "Use one known word."
            )
            found.append((field, repr(word), message, remedy))
    for dial, asked, default in (
        ("steps", spec.steps, recipe.inversion_steps),
        ("learning_rate", spec.learning_rate, recipe.inversion_learning_rate),
    ):
        if asked is None and default is None:
            message = f"The base model's recipe says no {dial} for {METHOD}."
            remedy = f"Give {dial}, or ask the operator to add inversion_{dial} to the recipe."
            found.append((dial, "", message, remedy))
    return [_problem(*each) for each in found]


def warnings(spec: JobSpec) -> Iterator[str]:
    """Dials that are given and do nothing."""
    if spec.method != METHOD:
        if spec.options.initializer_token is not None:
            yield f'initializer_token has no effect without method "{METHOD}"'
        return
    idle = {
        "train_text_encoder": spec.train_text_encoder,
        "prior_loss_weight": spec.prior_loss_weight,
        "class_prompt": spec.class_prompt,
        "text_encoder_learning_rate": spec.options.text_encoder_learning_rate,
    }
    for dial in (dial for dial, value in idle.items() if value):
        yield f"{dial} has no effect with {METHOD}: the embedding of the token is all that is trained"
    if spec.options.optimizer == "adamw_8bit":
        yield f"optimizer adamw_8bit saves nothing with {METHOD}, and writes no checkpoints"


def _problem(field: str, value: str, message: str, remedy: str) -> FieldProblem:
    return FieldProblem(field=field, value=value, message=f"method {METHOD}: {message}", remedy=remedy)
