"""A job on the wire: what is submitted, what it resolves to, how far it is."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from booth.contract import limits
from booth.contract.base import Page, Record, Request
from booth.contract.drawing import SchedulerName
from booth.contract.states import FailureReason, JobState

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.MAX_TEXT_CHARS)]
TRAINING_PHASE = "training"  # the phase in which `step` counts optimizer steps
CLASS_IMAGES_PHASE = "class images"
WAITING_PHASE = "waiting for class images"  # another job makes them, so that nothing of this one moves
Rate = Annotated[float, Field(gt=0, le=1)]
PromptText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.MAX_PROMPT_CHARS)]
LrSchedule = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adamw", "adamw_8bit"]
Precision = Literal["auto", "fp32", "bf16"]
Crop = Literal["center", "random", "bucket"]
ExportDtype = Literal["float16", "bfloat16"]
Method = Literal["dreambooth", "textual_inversion", "ip_adapter"]
CheckpointChoice = Literal["last", "fidelity"]
ClipText = Literal["noun", "identifier", "dropped"]
PromptSetName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.MAX_TEXT_CHARS)]


class MaskRef(Request):
    """A picture of a photo's size, white where the subject is. It is uploaded as photos are."""

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0, le=limits.MAX_PHOTO_BYTES)]
    filename: Annotated[str, StringConstraints(max_length=255)] = "mask"


class PhotoRef(Request):
    """One photo by content. `bytes` is its size as uploaded.

    `caption` is the prompt that this photo is trained with, in place of "a photo of <token> <class noun>". With a
    `mask` the loss of this photo counts inside the subject alone. A `held_out` photo is not trained on: scores compare
    pictures with it as with the others.
    """

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0, le=limits.MAX_PHOTO_BYTES)]
    filename: Annotated[str, StringConstraints(max_length=255)] = "photo"
    caption: PromptText | None = None
    mask: MaskRef | None = None
    held_out: bool = False


class ClassImageRef(Request):
    """A class image of the user's own, by content. It is uploaded as photos are."""

    sha256: Sha256
    bytes: Annotated[int, Field(gt=0, le=limits.MAX_PHOTO_BYTES)]
    filename: Annotated[str, StringConstraints(max_length=255)] = "class image"


OwnClassImages = Annotated[list[ClassImageRef], Field(max_length=limits.MAX_OWN_CLASS_IMAGES)]


class ClassImagesToCheck(Request):
    """Uploaded class images, for POST /v1/class-images: each is checked and stored before a job names it."""

    images: Annotated[list[ClassImageRef], Field(min_length=1, max_length=limits.MAX_CLASS_IMAGES_PER_CALL)]


class CheckedClassImages(Record):
    """The answer: so many are usable, all of them."""

    checked: int


class PromptCase(Record):
    """One prompt of a prompt set: what is drawn, and the text that CLIP-T compares its pictures with.

    `text` has the noun where `prompt` has the subject (the frozen base draws it); `clip_text` is what CLIP-T is told.
    `label` is the phrase that makes the case, such as "in the jungle". No training photo shows an `is_unseen` one.
    """

    kind: str
    prompt: str
    text: str
    clip_text: str
    label: str = ""
    is_unseen: bool = False


class ScoringOptions(Request):
    """Weights of a run drawn and scored with the paper's metrics. None means: as the base model's recipe says.

    `steps`: whose weights; 0 is the frozen base, -1 the end of the run. [-1] alone is, for a job that chooses among its
    checkpoints, all of the interval's; such a job scores the frozen base in any case.

    For each prompt of the set (or of `prompts`, templates such as "a {0} {1} in the snow") `num_images` are drawn from
    seed, seed + 1 ...; `num_class_images` of the class for PRES. `phrase` names the subject in prompts (None: "<token>
    <class noun>"), `noun` the class that PRES and CLIP-T take it for (None: the job's class noun). `unseen` are labels
    (as "in the snow") that no photo shows.
    """

    steps: Annotated[
        list[Annotated[int, Field(ge=-1, le=limits.MAX_STEPS)]], Field(max_length=limits.MAX_SCORE_STEPS)
    ] = [-1]
    prompt_set: PromptSetName | None = None
    prompts: Annotated[list[PromptText], Field(max_length=limits.MAX_SCORE_PROMPTS)] = []
    num_images: Annotated[int, Field(ge=1, le=32)] = 4
    num_class_images: Annotated[int, Field(ge=0, le=256)] = 16
    phrase: PromptText | None = None
    noun: Words | None = None
    unseen: Annotated[list[PromptText], Field(max_length=limits.MAX_SCORE_PROMPTS)] = []
    clip_text: ClipText = "noun"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None = None
    scheduler: SchedulerName = "base"
    suite: Words | None = None


class Scoring(Record):
    """How a job is scored, every value as resolved. `steps` are in order, each once."""

    steps: list[int]
    cases: list[PromptCase]
    class_prompt: str
    num_images: int
    num_class_images: int
    seed: int
    guidance_scale: float
    num_inference_steps: int
    scheduler: SchedulerName = "base"
    suite: str
    suite_id: str


class TrainingOptions(Request):
    """The rarely touched settings of a job. None means: as the base model's recipe says.

    The sources below are those of the recipes' own defaults (`Recipe`); a base model may have others.
    """

    text_encoder_learning_rate: Rate | None = None
    """Of the text encoder, where it is trained. None: as the recipe says."""
    instance_prompt: PromptText | None = None
    """What photos without a caption are trained with. None: "a photo of <token> <class noun>", as the paper's."""
    initializer_token: Words | None = None
    """The word whose embedding a textual inversion starts from: a single token. None: the class noun's last one, as the
    coarse words of Gal et al. 2022."""
    scoring: ScoringOptions | None = None
    """Score weights of the run, after it. None: nothing is scored, but where `select_checkpoint` asks for it."""
    select_checkpoint: CheckpointChoice | None = None
    """last: the end of the run is published. fidelity: of the scored steps, the best trade-off of subject and prompt
    fidelity."""
    select_patience: Annotated[int, Field(ge=0, le=limits.MAX_SCORE_STEPS)] | None = None
    """With select_checkpoint fidelity, and devices free beside the training: it ends early when the trade-off has been
    below its best for so many scored steps in a row. 3: one bad step may be noise; 0: never."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """AdamW's. 0.01: diffusers train_dreambooth.py --adam_weight_decay is 1e-2."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """The gradient's norm is cut to this. 1.0: diffusers train_dreambooth.py --max_grad_norm."""
    lr_warmup_steps: Annotated[int, Field(ge=0, le=limits.MAX_STEPS)] | None = None
    """Optimizer steps in which both rates grow from 0. 0: as the commands of the diffusers DreamBooth README."""
    lr_schedule: LrSchedule | None = None
    """After the warm-up: constant, or down to 0 at the last step. constant: the same README."""
    text_encoder_stop_step: Annotated[int, Field(ge=0, le=limits.MAX_STEPS)] | None = None
    """From this step on the text encoder's rate is 0. None: never, as in the paper's supplement."""
    snr_gamma: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Min-SNR-gamma on both loss terms (Hang et al. 2023, eq. 8; they use 5). 0, off: the paper's plain loss."""
    optimizer: OptimizerName | None = None
    """adamw_8bit keeps the moments in 8 bits (bitsandbytes, CUDA). adamw: exact moments."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Publish a moving average of the weights with this decay. 0, off: made no difference in the HF blog's trials."""
    precision: Precision | None = None
    """What the network computes in; master weights are fp32 always. auto: bf16 on GPUs, fp32 on CPUs."""
    crop: Crop | None = None
    """center: the middle square. random: a square drawn anew each step (not cached, slower). bucket: photos keep their
    shape, and a step's rows share one. center: what can be cached, and what photos of one subject mostly show."""
    random_flip: bool | None = None
    """Mirror half of the rows. Off: subjects are rarely symmetric."""
    export_dtype: ExportDtype | None = None
    """Of the published weights. float16: what published Stable Diffusion variants and their tools use; bfloat16 has
    the range of float32 and an eighth of float16's precision."""
    checkpoint_interval_steps: Annotated[int, Field(ge=1, le=limits.MAX_STEPS)] | None = None
    """At most so many steps are lost with a rank. 200: a quarter of the usual 800."""
    sample_interval_steps: Annotated[int, Field(ge=0, le=limits.MAX_STEPS)] | None = None
    """Draw `sample_prompts` every so many steps, and at the end. 0, off."""
    sample_prompts: Annotated[list[PromptText], Field(max_length=limits.MAX_SAMPLE_PROMPTS)] | None = None
    """None: the instance prompt, and the subject "on the beach"."""
    ip_adapter_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the method "ip_adapter": how much the photo counts beside the prompt. 0.6: diffusers' IP-Adapter guide (0.27)
    draws with it beside a prompt; its later ones say that 1 is the photo alone and 0.5 mostly balances the two."""


class SubjectSpec(Request):
    """A further subject of the same job, with photos, class noun and class images of its own."""

    class_noun: Words
    images: Annotated[list[PhotoRef], Field(min_length=1, max_length=limits.MAX_PHOTOS)]
    token: Words | None = None
    class_prompt: PromptText | None = None
    class_images: OwnClassImages = []


class JobSpec(Request):
    """What a user submits. Every dial that is None takes the base model's recipe.

    `class_prompt` None is "a photo of a <class noun>". Where `class_images` are given the base model draws none of this
    subject's, and `num_class_images` is their number.
    """

    class_noun: Words
    images: Annotated[list[PhotoRef], Field(min_length=1, max_length=limits.MAX_PHOTOS)]
    token: Words | None = None
    base_model: Words | None = None
    steps: Annotated[int, Field(ge=1, le=limits.MAX_STEPS)] | None = None
    learning_rate: Rate | None = None
    method: Method | None = None
    prior_loss_weight: Annotated[float, Field(ge=0, le=100)] | None = None
    num_class_images: Annotated[int, Field(ge=0, le=limits.MAX_CLASS_IMAGES)] | None = None
    class_images: OwnClassImages = []
    class_prompt: PromptText | None = None
    train_text_encoder: bool | None = None
    resolution: Annotated[int, Field(ge=32, le=limits.MAX_RESOLUTION_PX, multiple_of=8)] | None = None
    train_batch_size: Annotated[int, Field(ge=1, le=limits.MAX_TRAIN_BATCH_SIZE)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    name: Words | None = None
    more_subjects: Annotated[list[SubjectSpec], Field(max_length=limits.MAX_SUBJECTS - 1)] = []
    options: TrainingOptions = TrainingOptions()


class Subject(Record):
    """Who or what a job learns, and the two prompts of its loss terms."""

    token: str
    class_noun: str
    instance_prompt: str
    class_prompt: str


class Params(Record):
    """Every value a job runs with, as resolved from spec and recipe, the seed included.

    token, class_noun and both prompts are those of the first subject. `num_class_images` is for each subject
    whose class images the base model draws. `caption_templates` such as "a photo of {}" are what a textual inversion
    trains photos without a caption with, each row with one of them (none: the instance prompt); it starts from
    `initializer_token`, or the last token of the class noun. The method "ip_adapter" trains nothing: `steps` is 0.
    """

    base_model: str
    token: str
    class_noun: str
    instance_prompt: str
    class_prompt: str
    steps: int
    learning_rate: float
    text_encoder_learning_rate: float
    prior_loss_weight: float
    num_class_images: int
    train_text_encoder: bool
    resolution: int
    train_batch_size: int
    seed: int
    weight_decay: float
    max_grad_norm: float
    lr_warmup_steps: int
    random_flip: bool
    checkpoint_interval_steps: int
    lr_schedule: LrSchedule = "constant"
    text_encoder_stop_step: int | None = None
    snr_gamma: float = 0.0
    optimizer: OptimizerName = "adamw"
    ema_decay: float = 0.0
    precision: Precision = "auto"
    crop: Crop = "center"
    export_dtype: ExportDtype = "float16"
    sample_interval_steps: int = 0
    sample_prompts: list[str] = []
    more_subjects: list[Subject] = []
    method: Method = "dreambooth"
    ip_adapter_scale: float = 0.6
    scoring: Scoring | None = None
    select_checkpoint: CheckpointChoice = "last"
    select_patience: int = 0
    initializer_token: str | None = None
    caption_templates: list[str] = []

    @property
    def subjects(self) -> list[Subject]:
        """All subjects, the first one first."""
        first = Subject(
            token=self.token,
            class_noun=self.class_noun,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
        )
        return [first, *self.more_subjects]

    @property
    def end_step(self) -> int:
        """The scored step that is the finished model's; 0 is the frozen base's, also where nothing is trained."""
        return max(1, self.steps)


class UploadTarget(Record):
    """Where to PUT one photo; `url` is None where the service already holds these bytes."""

    sha256: str
    url: str | None = None


class PreparedJob(Record):
    """The answer to POST /v1/jobs/prepare: the spec is valid, and these photos are still missing."""

    params: Params
    warnings: list[str] = []
    uploads: list[UploadTarget]


class Progress(Record):
    """How far a job is. Losses, norm and rates are of the last reported step; `eta_s` covers the current phase.

    `step` counts optimizer steps while it trains, pictures while they are made or encoded, MB while it publishes.

    `grad_norm` is the gradient's before clipping. `mfu` is the share of the devices' measured matrix rate that the
    arithmetic of the steps comes to. `peak_memory_bytes` is the fullest rank's.
    """

    phase: str = "queued"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    instance_loss: float | None = None
    prior_loss: float | None = None
    images_per_second: float | None = None
    eta_s: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None


class JobFailure(Record):
    """Why a job failed, and what to do about it."""

    reason: FailureReason
    message: str
    remedy: str
    detail: str = ""


class JobRecord(Record):
    """A job as its owner sees it. `status_detail` is a sentence."""

    id: str
    name: str
    status: JobState
    status_detail: str
    progress: Progress
    params: Params
    warnings: list[str] = []
    error: JobFailure | None = None
    attempt: int = 0
    model_id: str | None = None
    group_id: str | None = None
    selected_step: int | None = None
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobPage(Page):
    """Jobs, newest first."""

    jobs: list[JobRecord]


class Event(Record):
    """One line of a job's history. `seq` grows by one within a job."""

    seq: int
    at: datetime
    kind: str  # state | progress | note | warning | samples | scores
    message: str
    status: JobState
    progress: Progress | None = None


class EventPage(Record):
    """Events after the asked one, and the job as it stands."""

    events: list[Event]
    job: JobRecord


class LogPage(Record):
    """Log text from an offset; `complete` once the attempt has ended and no more will come."""

    text: str
    next_offset: int
    attempt: int
    complete: bool
