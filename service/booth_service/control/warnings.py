"""What the user should know before a job starts; none of it stops the job. Pure."""

import re
from collections.abc import Iterable, Sequence

from booth.contract.jobs import JobSpec, Params, PhotoRef
from booth.contract.models import Recipe
from booth_service.control import inversion, one_photo
from booth_service.control.tokens import Vocabulary

_MOST_NAMES = 5


def of_spec(spec: JobSpec, params: Params, recipe: Recipe, vocabulary: Vocabulary) -> list[str]:
    """All that words and numbers alone tell, before a photo is there."""
    if spec.method == one_photo.METHOD:
        return list(one_photo.warnings_of(spec))
    return [
        *_of_tokens(params, recipe, vocabulary),
        *_of_prompts(params, vocabulary),
        *_of_class_prompts(params),
        *_of_captions(spec, params, vocabulary),
        *_of_photo_counts(spec, params),
        *_of_resolution(params, recipe),
        *_of_unused_dials(spec, params),
        *inversion.warnings(spec),
        *_of_schedules(params),
        *_of_samples(spec, params),
        *_of_scoring(params),
        *_of_options(params),
    ]


def of_photos(params: Params, photos: Sequence[tuple[str, tuple[int, int]]]) -> list[str]:
    """What the photos themselves tell: their names and (width, height)."""
    if params.method == one_photo.METHOD:
        return []  # its size is that of the image encoder, far below the resolution
    said = []
    if small := [f"{name} ({w} x {h})" for name, (w, h) in photos if _is_small(w, h, params)]:
        said.append(
            f"photos smaller than the resolution {params.resolution} are upscaled, and the model learns their blur: "
            f"{_some(small)}"
        )
    if params.crop == "bucket" and all(width == height for _, (width, height) in photos):
        said.append("crop bucket has no effect: every photo is square")
    return said


def _is_small(width: int, height: int, params: Params) -> bool:
    """True where the photo has fewer pixels than training shows of it; buckets keep the area of the square."""
    if params.crop == "bucket":
        return width * height < params.resolution**2
    return min(width, height) < params.resolution


def _of_tokens(params: Params, recipe: Recipe, vocabulary: Vocabulary) -> Iterable[str]:
    for token in (subject.token for subject in params.subjects):
        pieces = vocabulary.pieces(token)
        if len(pieces) > 1:
            rare = (recipe.rare_tokens or vocabulary.rare_tokens() or ["sks"])[0]
            yield (
                f"token {token!r} is {len(pieces)} pieces of the base model's tokenizer ({' '.join(pieces)}): "
                f"a rare single token such as {rare!r} binds better"
            )


def _of_prompts(params: Params, vocabulary: Vocabulary) -> Iterable[str]:
    prompts = [("the instance prompt", subject.instance_prompt) for subject in params.subjects]
    prompts += [("the class prompt", subject.class_prompt) for subject in params.subjects]
    if params.sample_interval_steps:
        prompts += [("the sample prompt", text) for text in params.sample_prompts]
    if params.scoring:
        prompts += [("the scored prompt", case.prompt) for case in params.scoring.cases]
    for kind, prompt in prompts:
        if over := vocabulary.overflow(prompt):
            yield (
                f"{kind} {prompt!r} is {over} pieces longer than the {vocabulary.max_length} that the base "
                "model's text encoder reads: its end is cut off"
            )


def _of_class_prompts(params: Params) -> Iterable[str]:
    for subject in params.subjects:
        if params.num_class_images and _names(subject.class_prompt, subject.token):
            yield (
                f"the class prompt {subject.class_prompt!r} holds the token {subject.token!r}: class images "
                "then teach what the token should not mean"
            )


def _of_captions(spec: JobSpec, params: Params, vocabulary: Vocabulary) -> Iterable[str]:
    for subject, photos in zip(params.subjects, _photos(spec), strict=True):
        captioned = [(photo.filename, photo.caption) for photo in photos if photo.caption is not None]
        if silent := [name for name, caption in captioned if not _names(caption, subject.token)]:
            yield (
                f"captions without the token {subject.token!r}, from which it learns nothing of these photos: "
                f"{_some(silent)}"
            )
        if long := [name for name, caption in captioned if vocabulary.overflow(caption)]:
            yield (
                f"captions longer than the {vocabulary.max_length} pieces that the base model's text encoder reads, "
                f"their ends are cut off: {_some(long)}"
            )


def _of_photo_counts(spec: JobSpec, params: Params) -> Iterable[str]:
    total = 0
    for subject, photos in zip(params.subjects, _photos(spec), strict=True):
        whose = f" of {subject.token} {subject.class_noun}" if spec.more_subjects else ""
        count = len({photo.sha256 for photo in photos})
        total += count
        if count < len(photos):
            yield f"{len(photos) - count} of {len(photos)} photos{whose} are given twice and used once"
        if count == 1:
            yield (
                f"1 photo{whose}: the subject will look as it does there, and poses will vary little; "
                "3 to 5 work better"
            )
    if params.train_batch_size > total:
        yield (
            f"train_batch_size {params.train_batch_size} is more than the {total} photos: "
            "photos repeat within a step, with other noise"
        )


def _of_resolution(params: Params, recipe: Recipe) -> Iterable[str]:
    if params.resolution != recipe.resolution:
        yield f"resolution {params.resolution} is not the {recipe.resolution} that the base model works best at"


def _of_unused_dials(spec: JobSpec, params: Params) -> Iterable[str]:
    if params.method == inversion.METHOD:
        return
    if not params.train_text_encoder:
        if spec.options.text_encoder_learning_rate is not None:
            yield "text_encoder_learning_rate has no effect while train_text_encoder is false"
        if spec.options.text_encoder_stop_step is not None:
            yield "text_encoder_stop_step has no effect while train_text_encoder is false"
    if params.num_class_images == 0:
        if spec.class_images or any(further.class_images for further in spec.more_subjects):
            yield "class_images have no effect while prior_loss_weight or num_class_images is 0"
        if spec.num_class_images:
            yield "num_class_images has no effect while prior_loss_weight is 0"
        if spec.prior_loss_weight:
            yield "prior_loss_weight has no effect while num_class_images is 0"


def _of_schedules(params: Params) -> Iterable[str]:
    if params.lr_warmup_steps >= params.steps:
        yield (
            f"lr_warmup_steps {params.lr_warmup_steps} is not below the {params.steps} steps: "
            "the learning rate never reaches its value"
        )
    stop = params.text_encoder_stop_step
    if stop is None or not params.train_text_encoder:
        return
    if stop == 0:
        yield "text_encoder_stop_step 0 never trains the text encoder: train_text_encoder false does so in less memory"
    elif stop >= params.steps:
        yield f"text_encoder_stop_step {stop} has no effect: the job ends after {params.steps} steps"


def _of_samples(spec: JobSpec, params: Params) -> Iterable[str]:
    if params.sample_interval_steps and not params.sample_prompts:
        yield "sample_interval_steps has no effect while sample_prompts is empty"
    if spec.options.sample_prompts and not params.sample_interval_steps:
        yield "sample_prompts have no effect while sample_interval_steps is 0"


def _of_scoring(params: Params) -> Iterable[str]:
    if params.scoring is None:
        return
    if params.more_subjects:
        yield f"scores are of the first subject alone, {params.token} {params.class_noun}"
    own = [step for step in params.scoring.steps if step]
    if params.select_checkpoint == "fidelity" and len(own) == 1:
        yield (
            f"select_checkpoint fidelity has no choice: step {own[0]} alone is scored; name more steps in "
            "scoring.steps, or lower checkpoint_interval_steps"
        )


def _of_options(params: Params) -> Iterable[str]:
    if params.ema_decay and (reach := round(1 / (1 - params.ema_decay))) > params.steps:
        yield (
            f"ema_decay {params.ema_decay:g} averages over about {reach} steps, more than the {params.steps} of the "
            "job: what is published lags behind what was learned"
        )
    if params.optimizer == "adamw_8bit":
        yield "optimizer adamw_8bit needs NVIDIA GPUs and bitsandbytes on every node that trains"
    if params.crop == "random":
        yield "crop random draws a new square in each step: nothing is encoded ahead, so that steps take longer"


def _photos(spec: JobSpec) -> list[list[PhotoRef]]:
    """The photos of each subject that are trained on."""
    subjects = [spec.images, *(further.images for further in spec.more_subjects)]
    return [[photo for photo in photos if not photo.held_out] for photos in subjects]


def _names(caption: str, token: str) -> bool:
    """True where the token stands in the caption as a word of its own, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(token)}(?!\w)", caption, re.IGNORECASE) is not None


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
