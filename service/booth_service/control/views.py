"""Rows as their owners see them."""

from booth.contract.attempts import StoredFile
from booth.contract.generations import GenerationRecord, GenerationSettings
from booth.contract.jobs import Event, JobFailure, JobRecord, Params, Progress
from booth.contract.models import BaseModelRecord, ModelRecord, Recipe
from booth.contract.states import Desired
from booth_service.control.records import BaseModel, Generation, Job, JobEvent, Model


def job_record(job: Job) -> JobRecord:
    """A job."""
    return JobRecord(
        id=job.id,
        name=job.name,
        status=job.state,
        status_detail=job.status_detail,
        progress=Progress.model_validate(job.progress),
        params=Params.model_validate(job.params),
        warnings=job.warnings,
        error=None if job.error is None else JobFailure.model_validate(job.error),
        attempt=job.attempt,
        model_id=job.model_id,
        group_id=job.group_id,
        selected_step=job.selected_step,
        cancel_requested=job.desired is Desired.CANCEL,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def event_record(event: JobEvent) -> Event:
    """One line of a job's history."""
    return Event(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        message=event.message,
        status=event.status,
        progress=None if event.progress is None else Progress.model_validate(event.progress),
    )


def generation_record(generation: Generation, base_model: str) -> GenerationRecord:
    """A generation; `base_model` is its base model's name."""
    return GenerationRecord(
        id=generation.id,
        model_id=generation.model_id,
        base_model=base_model,
        status=generation.state,
        status_detail=generation.status_detail,
        prompts=generation.prompts,
        done=generation.done,
        total=generation.total,
        settings=GenerationSettings.model_validate(generation.settings),
        images_per_second=generation.images_per_second,
        eta_s=generation.eta_s,
        error=None if generation.error is None else JobFailure.model_validate(generation.error),
        attempt=generation.attempt,
        cancel_requested=generation.desired is Desired.CANCEL,
        created_at=generation.created_at,
        started_at=generation.started_at,
        finished_at=generation.finished_at,
    )


def model_record(model: Model) -> ModelRecord:
    """A published model."""
    params = Params.model_validate(model.params)
    prefix, *more_prefixes = prompt_prefixes(params)
    return ModelRecord(
        id=model.id,
        job_id=model.job_id,
        name=model.name,
        base_model=params.base_model,
        token=params.token,
        class_noun=params.class_noun,
        method=params.method,
        prompt_prefix=prefix,
        more_prompt_prefixes=more_prefixes,
        bytes=model.bytes,
        created_at=model.created_at,
    )


def prompt_prefixes(params: Params) -> list[str]:
    """What names each subject in a prompt, e.g. "sks dog"; "sks" where the token takes the noun's place, "dog" where no
    token was taught."""
    if params.method == "textual_inversion":
        return [params.token]
    return [f"{subject.token} {subject.class_noun}".lstrip() for subject in params.subjects]


def base_model_record(base: BaseModel) -> BaseModelRecord:
    """A base model with its default dials."""
    recipe = Recipe.model_validate(base.recipe)
    return BaseModelRecord(
        name=base.name,
        family=base.family,
        is_default=base.is_default,
        recipe=recipe,
        bytes=sum(file.bytes for file in stored_files(base.files)),
        source=base.source if base.revision else "",  # folders and buckets are the operator's own affair
        revision=base.revision,
        has_ip_adapter=bool(base.adapter_files),
    )


def stored_files(rows: list[object]) -> list[StoredFile]:
    """File records out of a JSON column."""
    return [StoredFile.model_validate(row) for row in rows]
