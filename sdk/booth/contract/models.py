"""Models on the wire: what a job yields, its files, and pictures asked of it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field

from booth.contract import limits
from booth.contract.base import Page, Record, Request
from booth.contract.drawing import Fraction, NegativePrompt, Prompt, PromptEdit, SchedulerName
from booth.contract.jobs import CheckpointChoice, Crop, ExportDtype, LrSchedule, Method, OptimizerName, Precision
from booth.contract.problems import Problem

ClassScheduler = Literal["base", "ddim", "dpmsolver++"]
SidePx = Annotated[int, Field(ge=8, le=limits.MAX_RESOLUTION_PX)]


class ModelRecord(Record):
    """A published model. `prompt_prefix` is what names the subject in a prompt, e.g. "sks dog"; then the others'.

    Of a textual inversion it is the token alone.
    """

    id: str
    job_id: str
    name: str
    base_model: str
    token: str
    class_noun: str
    prompt_prefix: str
    more_prompt_prefixes: list[str] = []
    method: Method = "dreambooth"
    bytes: int
    created_at: datetime


class ModelPage(Page):
    """Models, newest first."""

    models: list[ModelRecord]


class ModelFile(Record):
    """One file of the diffusers folder, with a link that works for a few minutes; its digests are as in StoredFile.

    With `delta` it has no link of its own: it is put together from the links in there.
    """

    path: str
    bytes: int
    sha256: str
    url: str
    part_bytes: int = 0
    part_sha256: list[str] = []
    delta: "ModelDelta | None" = None


class ChunkLink(Record):
    """What is stored of one part, with its link; bytes and SHA-256 are those behind the link."""

    url: str
    bytes: int
    sha256: str


class ModelDelta(Record):
    """As `contract.attempts.Delta`, with links; the reference is a whole file, the same for all models of a base."""

    coding: str
    reference: ModelFile
    chunks: list[ChunkLink]


class ModelFiles(Record):
    """All files of a model's diffusers folder; and beside it what was learned in another form."""

    files: list[ModelFile]
    artefacts: list[ModelFile] = []


class GenerateRequest(Request):
    """Pictures asked of a model: `num_images` for each prompt. None means: as the base model's recipe says.

    Picture k of prompt p is drawn from seed + k, so a single picture can be made again alone. With `image`, a PNG, JPEG
    or WebP file in base64, drawing starts from that picture and goes `strength` of the way (img2img). With `edit` the
    prompts say what a source prompt's picture is changed to. `response_format` "link" stores the pictures and answers
    links that work for a few minutes.
    """

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=limits.MAX_PROMPTS_PER_CALL)]
    num_images: Annotated[int, Field(ge=1, le=limits.MAX_IMAGES_PER_CALL)] = 1
    negative_prompt: NegativePrompt = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None = None
    width: SidePx | None = None
    height: SidePx | None = None
    scheduler: SchedulerName = "base"
    image: Base64Bytes | None = None
    strength: Fraction | None = None
    edit: PromptEdit | None = None
    preview_interval_steps: Annotated[int, Field(ge=0, le=500)] = 0
    response_format: Literal["inline", "link"] = "inline"


class Picture(Record):
    """One generated picture, PNG in base64 or behind a link, with what it takes to make it again.

    An edited one has the picture of its source prompt beside it.
    """

    png_base64: str = ""
    url: str = ""
    prompt: str
    seed: int
    source_png_base64: str | None = None
    source_url: str | None = None
    batch_size: int = 0


class GenerateAnswer(Record):
    """Pictures in the order prompt by prompt, and the settings they were made with."""

    pictures: list[Picture]
    guidance_scale: float
    num_inference_steps: int
    width: int = 0
    height: int = 0
    scheduler: SchedulerName = "base"


class GenerateEvent(Record):
    """One server-sent event of a generate call with `Accept: text/event-stream`, as in contract.serving.DrawEvent.

    "picture" carries the finished picture, "done" the whole answer without its pictures, "refused" a problem.
    """

    kind: Literal["step", "picture", "done", "refused"]
    step: int = 0
    total_steps: int = 0
    places: list[int] = []
    previews: list[str] = []
    picture: Picture | None = None
    answer: GenerateAnswer | None = None
    problem: Problem | None = None


class BaseModelRecord(Record):
    """A base model that jobs can start from, with the default dials of its recipe.

    `source` is a hub id, with the commit as `revision`; it is empty where the files came from elsewhere.
    `has_ip_adapter`: it takes jobs of the method "ip_adapter".
    """

    name: str
    family: str
    is_default: bool
    recipe: "Recipe"
    bytes: int = 0
    source: str = ""
    revision: str | None = None
    has_ip_adapter: bool = False


class BaseModelPage(Record):
    """All base models."""

    base_models: list[BaseModelRecord]


class Recipe(Record):
    """The default dials of a base model, with their source. No such number stands in code.

    `encoders` names the suite that models are scored with, `prompt_set` the prompts, `score_num_inference_steps` how
    many steps a scored picture takes (0: as any other). The `class_` ones are the operator's alone: how class images
    are drawn. Another value of any is another set. `class_scheduler` "base" is the base model's own;
    `class_block_size` pictures are drawn at a time by one actor. The `inversion_` ones are Textual Inversion's own, in
    place of the dials of their names; templates such as "a photo of {}" are what its photos are trained with.
    """

    source: str
    family: str = "stable-diffusion"
    steps: int
    learning_rate: float
    text_encoder_learning_rate: float
    prior_loss_weight: float = 1.0
    num_class_images: int
    train_text_encoder: bool = True
    resolution: int
    train_batch_size: int
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_warmup_steps: int = 0
    random_flip: bool = False
    checkpoint_interval_steps: int = 200
    lr_schedule: LrSchedule = "constant"
    text_encoder_stop_step: int | None = None
    snr_gamma: float = 0.0
    optimizer: OptimizerName = "adamw"
    ema_decay: float = 0.0
    precision: Precision = "auto"
    crop: Crop = "center"
    export_dtype: ExportDtype = "float16"
    sample_interval_steps: int = 0
    sample_prompts: list[str] | None = None
    ip_adapter_scale: float = 0.6
    guidance_scale: float
    num_inference_steps: int
    class_guidance_scale: float
    class_num_inference_steps: int
    class_negative_prompt: str = ""
    class_scheduler: ClassScheduler = "base"
    class_block_size: int = 4
    class_threads_per_actor: int = 1
    class_seed: int = 0
    rare_tokens: list[str] = []
    inversion_steps: int | None = None
    inversion_learning_rate: float | None = None
    inversion_train_batch_size: int | None = None
    inversion_templates: list[str] = []
    select_checkpoint: CheckpointChoice = "last"
    select_patience: int = 3
    encoders: str = "paper"
    prompt_set: str = "objects"
    score_num_inference_steps: int = 0
