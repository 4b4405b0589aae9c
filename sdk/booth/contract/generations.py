"""A generation on the wire: many pictures of one model, drawn by a job on the cluster into the object store."""

import re
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from booth.contract import limits
from booth.contract.base import Page, Record, Request
from booth.contract.drawing import Prompt, SchedulerName
from booth.contract.jobs import JobFailure
from booth.contract.models import SidePx
from booth.contract.states import FailureReason, RunState

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc


def plain(text: str) -> str:
    """The text itself; an error where it holds control characters, NUL among them."""
    if _CONTROL.search(text):
        raise PydanticCustomError("control_characters", "It holds control characters")
    return text


def not_blank(text: str) -> str:
    """The text itself; an error where it is spaces alone."""
    if not text.strip():
        raise PydanticCustomError("blank", "It is blank")
    return text


Plain = AfterValidator(plain)


class GenerationSpec(Request):
    """Many pictures asked of a model: `num_images` for each prompt. None means: as the base model's recipe says.

    As in GenerateRequest, picture k of prompt p is drawn from seed + k. There are at most MAX_BULK_PICTURES of them,
    and as JSON the whole has at most MAX_BULK_BYTES.
    """

    prompts: Annotated[
        list[Annotated[Prompt, Plain, AfterValidator(not_blank)]],
        Field(min_length=1, max_length=limits.MAX_BULK_PICTURES),
    ]
    num_images: Annotated[int, Field(ge=1, le=limits.MAX_BULK_PICTURES)] = 1
    negative_prompt: Annotated[str, StringConstraints(max_length=limits.MAX_PROMPT_CHARS), Plain] = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None = None
    width: SidePx | None = None
    height: SidePx | None = None
    scheduler: SchedulerName = "base"

    @field_validator("num_images")
    @classmethod
    def _not_too_many(cls, num_images: int, info: ValidationInfo) -> int:
        total = num_images * len(info.data.get("prompts", []))
        if total > limits.MAX_BULK_PICTURES:
            context = {"total": total, "most": limits.MAX_BULK_PICTURES}
            raise PydanticCustomError("too_many_pictures", "That is {total} pictures in all", context)
        return num_images

    @property
    def total(self) -> int:
        """Pictures in all."""
        return len(self.prompts) * self.num_images


class GenerationSettings(Record):
    """The values that every picture of a generation is drawn with."""

    seed: int
    num_images: int
    negative_prompt: str = ""
    guidance_scale: float
    num_inference_steps: int
    width: int
    height: int
    scheduler: SchedulerName = "base"


class GenerationRecord(Record):
    """A generation as its owner sees it. `done` of `total` pictures are drawn and can be fetched.

    `model_id` is None where a base model draws. `images_per_second` and `eta_s` are there while it runs.
    """

    id: str
    model_id: str | None = None
    base_model: str
    status: RunState
    status_detail: str
    prompts: int
    done: int
    total: int
    settings: GenerationSettings
    images_per_second: float | None = None
    eta_s: float | None = None
    error: JobFailure | None = None
    attempt: int = 0
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class GenerationPage(Page):
    """Generations, newest first."""

    generations: list[GenerationRecord]


class GenerationPicture(Record):
    """One finished picture, number `index` of all (prompt by prompt, from 0), with a link that works for minutes."""

    index: int
    prompt: str
    seed: int
    batch_size: int
    bytes: int
    sha256: str
    url: str


class GenerationPicturePage(Record):
    """The finished pictures among the next ones by number; `next_after` is None where no number is left to ask for."""

    pictures: list[GenerationPicture]
    next_after: int | None = None


_WORDS: dict[FailureReason, tuple[str, str]] = {
    FailureReason.DOES_NOT_FIT: (
        "The cluster has no device for it.",
        "Add a node, or let inference hold fewer GPUs.",
    ),
    FailureReason.OUT_OF_MEMORY: (
        "A drawing process ran out of memory.",
        "Ask for smaller pictures, or lower the service's serving_batch_size.",
    ),
    FailureReason.BAD_MODEL: (
        "The model's weights are damaged.",
        "Personalise again; report it if it happens twice.",
    ),
    FailureReason.NO_FIRST_STEP: (
        "No picture came in time, usually because no device was ever free.",
        "Look at what else holds CPUs or GPUs on the cluster, then ask again.",
    ),
    FailureReason.STALLED: (
        "No picture came for too long, and the attempt was stopped.",
        "It is tried again by itself.",
    ),
    FailureReason.WORKER_DIED: ("A drawing process died.", "It is tried again by itself; drawn pictures stay."),
    FailureReason.CLUSTER_LOST: ("The Ray cluster that drew is gone.", "It is tried again by itself."),
    FailureReason.SUPERSEDED: ("A newer attempt took over.", "Nothing to do."),
    FailureReason.CANCELLED: ("It was cancelled.", "Ask again to start over."),
    FailureReason.INTERNAL: ("An unexpected error ended the attempt.", "Report the generation's id."),
}


def words(reason: FailureReason) -> tuple[str, str]:
    """What happened to a generation, and what its owner can do: as for jobs, where these say it well."""
    return _WORDS.get(reason, (reason.message, reason.remedy))
