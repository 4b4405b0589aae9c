"""Evaluations of published models on the wire, and reports.

An evaluation draws a prompt set with a model and its baselines (arms), encodes the pictures, and scores them.

POST /v1/evaluations                       EvaluationSpec -> 202 EvaluationRecord
GET  /v1/evaluations, /v1/evaluations/{id} EvaluationPage, EvaluationRecord
POST /v1/evaluations/{id}/cancel           202; DELETE /v1/evaluations/{id} 204
GET  /v1/evaluations/{id}/report           ReportFiles; also of /v1/groups/{id} and /v1/jobs/{id}
GET  /v1/jobs/{id}/scores                  JobScores
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from booth.contract import generations, limits
from booth.contract.attempts import StoredFile
from booth.contract.base import Page, Record, Request
from booth.contract.drawing import SchedulerName
from booth.contract.jobs import ClipText, JobFailure, PromptCase, PromptSetName, PromptText, Words
from booth.contract.scores import Score
from booth.contract.serving import DrawRequest
from booth.contract.states import FailureReason, RunState

ENCODING_PHASE = "encoding"  # the phase in which `step` counts pictures whose vectors are stored
REPORT_PHASE = "reporting"
REPORT_FILES = ("report.json", "report.html", "sheet.png", "curves.png")
"""What a report may consist of, side by side in one folder; the first is always there."""


class JobScores(Record):
    """A job's scores by step. `selected_step` is whose weights were published, where the job chose among them."""

    scores: list[Score]
    selected_step: int | None = None


class ReportRow(Record):
    """A score in a table: of which subject, in which arm (what was varied), from which seed."""

    subject: str
    arm: str
    seed: int = 0
    labels: dict[str, str] = {}
    score: Score


class ReportTable(Record):
    """A further table of a report, as text: cells of a row stand under `head`; `note` says how to read it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


class Report(Record):
    """Everything a report shows. `definitions` say how each figure is made, `settings` with what."""

    title: str
    rows: list[ReportRow]
    photos: dict[str, list[StoredFile]] = {}
    definitions: dict[str, str] = {}
    settings: dict[str, str] = {}
    warnings: list[str] = []
    tables: list[ReportTable] = []


class ReportFile(Record):
    """One file of a report (report.json, report.html, sheet.png, curves.png), with a link that works for minutes."""

    name: str
    bytes: int
    url: str


class ReportFiles(Record):
    """A finished report."""

    files: list[ReportFile]


class EvaluationSpec(Request):
    """An evaluation asked of a model. None means: as the base model's recipe says.

    The frozen base is always an arm; with a `description` of the subject in words, so is the base drawn with that in
    the subject's place (the paper's comparison with Imagen and DALL-E 2). `compare` names further models of the same
    subject. `prompts` are templates of the user's own ("a {0} {1} in the snow") in place of a set. `subject` is the
    number of the subject, of a model that has several. `unseen` are labels (as "in the snow") that no photo shows;
    without any, captions and attribute heads tell, where there are some.
    """

    model_id: Words
    compare: Annotated[list[Words], Field(max_length=8)] = []
    description: PromptText | None = None
    prompt_set: PromptSetName | None = None
    prompts: Annotated[list[PromptText], Field(max_length=limits.MAX_SCORE_PROMPTS)] = []
    num_images: Annotated[int, Field(ge=1, le=32)] = 4
    num_class_images: Annotated[int, Field(ge=0, le=256)] = 16
    clip_text: ClipText = "noun"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None = None
    scheduler: SchedulerName = "base"
    suite: Words | None = None
    subject: Annotated[int, Field(ge=0, lt=limits.MAX_SUBJECTS)] = 0
    unseen: Annotated[list[PromptText], Field(max_length=limits.MAX_SCORE_PROMPTS)] = []


class EvaluationSettings(Record):
    """The values that an evaluation runs with: its spec as resolved. `templates` are those of its prompts."""

    spec: EvaluationSpec
    suite: str
    suite_id: str
    guidance_scale: float
    num_inference_steps: int
    resolution: int
    templates: list[str] = []
    block_size: int = 1


class EvaluationRecord(Record):
    """An evaluation as its owner sees it. `done` of `total` pictures of all arms are drawn.

    `seconds_per_picture` is what a picture of the newest run like it took in all, where there was one.
    """

    id: str
    model_id: str
    status: RunState
    status_detail: str
    done: int
    total: int
    settings: EvaluationSettings
    seconds_per_picture: float | None = None
    images_per_second: float | None = None
    eta_s: float | None = None
    error: JobFailure | None = None
    attempt: int = 0
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class EvaluationPage(Page):
    """Evaluations, newest first."""

    evaluations: list[EvaluationRecord]


class Arm(Record):
    """What is drawn and scored: by whom (`request` has no draws: they come from the cases), of which cases.

    `step` is whose weights they are, 0 of the frozen base.
    """

    name: str
    kind: Literal["model", "base", "described"]
    request: DrawRequest
    cases: list[PromptCase]
    class_prompt: str
    step: int = 0
    labels: dict[str, str] = {}

    @property
    def draws_class(self) -> bool:
        """A description changes nothing of how the base draws the class, so the base's own class pictures stand."""
        return self.kind != "described"

    def total(self, num_images: int, num_class_images: int) -> int:
        """Its pictures: `num_images` for each case, then those of the class."""
        return len(self.cases) * num_images + num_class_images * self.draws_class


class EvaluationBrief(Record):
    """All that an attempt needs to know. Picture k of a case is drawn from seed + k, in every arm.

    `is_unseen_told`: which cases are unseen is known already; else attribute heads may tell.
    """

    evaluation_id: str
    tenant_id: str
    attempt: int
    fence: int
    subject: str
    arms: list[Arm]
    photos: list[StoredFile]
    suite: str
    suite_files: list[StoredFile]
    num_images: int
    num_class_images: int
    seed: int
    block_size: int
    total: int
    serving_gpus: float
    is_unseen_told: bool = False
    settings: dict[str, str] = {}


def words(reason: FailureReason) -> tuple[str, str]:
    """What happened to an evaluation, and what its owner can do: as for generations, where these say it well."""
    if reason is FailureReason.INTERNAL:
        return reason.message, "Report the evaluation's id."
    return generations.words(reason)
