"""A model scored beside its baselines by a job on the cluster: follow it, look at its report."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pydantic

from booth.contract.evaluation import EvaluationPage, EvaluationRecord, EvaluationSettings, EvaluationSpec
from booth.contract.problems import FieldProblem, field_problems
from booth.contract.prompt_files import of_file
from booth.contract.prompt_sets import PromptSetError, checked, named
from booth.errors import ValidationError
from booth.reports import Report
from booth.runs import Run
from booth.transport import Transport

PATH = "/v1/evaluations"
Read = TypeVar("Read")


class Evaluation(Run[EvaluationRecord]):
    """A model being measured beside its baselines; made anew by `client.evaluations.get`."""

    path = PATH
    record_type = EvaluationRecord

    @property
    def model_id(self) -> str:
        """The model that is evaluated."""
        return self._record.model_id

    @property
    def settings(self) -> EvaluationSettings:
        """What it runs with, every value as resolved."""
        return self._record.settings

    @property
    def estimated_s(self) -> float | None:
        """About how long it takes in all, by the newest one like it; None where there was none."""
        pace = self._record.seconds_per_picture
        return None if pace is None else pace * self.total

    def report(self) -> Report:
        """Its report. Raises ConflictError before its end."""
        return Report(self._transport, f"{self._path}/report")


class Evaluations:
    """The evaluations of the key's owner: `client.evaluations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, evaluation_id: str) -> Evaluation:
        """The evaluation with this id, from any process. Raises NotFoundError."""
        path = f"{PATH}/{quote(evaluation_id, safe='')}"
        return Evaluation(self._transport, self._transport.get(path, EvaluationRecord))

    def list(self, limit: int | None = None) -> builtins.list[Evaluation]:
        """Evaluations, newest first; `limit` is the most."""
        records = self._transport.newest(PATH, EvaluationPage, lambda page: page.evaluations, limit)
        return [Evaluation(self._transport, record) for record in records]


def begin(
    transport: Transport,
    model_id: str,
    prompt_set: str | None,
    prompts: str | Path | Sequence[str] | None,
    settings: Mapping[str, Any],
    idempotency_key: str | None,
) -> Evaluation:
    """The evaluation, queued. Raises ValidationError for bad settings, before anything is sent."""
    templates = [] if prompts is None else _templates(prompts)
    if prompt_set is not None:
        _refusing("prompt_set", prompt_set, partial(named, prompt_set))
    try:
        spec = EvaluationSpec(model_id=model_id, prompt_set=prompt_set, prompts=templates, **settings)
    except pydantic.ValidationError as error:
        raise ValidationError(field_problems(error.errors())) from None
    key = idempotency_key or uuid.uuid4().hex
    return Evaluation(transport, transport.post(PATH, EvaluationRecord, body=spec, idempotency_key=key))


def _templates(prompts: str | Path | Sequence[str]) -> list[str]:
    """Of a file its lines, else what was given; each names the subject."""
    if not isinstance(prompts, str | Path):
        found = list(prompts)
        if not found:
            message, remedy = "There is no prompt.", "Give at least one, or a prompt set by name."
            raise ValidationError([FieldProblem(field="prompts", value="[]", message=message, remedy=remedy)])
        return [_refusing(f"prompts.{place}", each, partial(checked, each)) for place, each in enumerate(found)]
    path = Path(prompts)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"It is not UTF-8 ({error.reason} at byte {error.start})."
        problem = FieldProblem(field="prompts", value=str(path), message=message, remedy="Save it as UTF-8.")
        raise ValidationError([problem]) from None
    except OSError as error:
        remedy = "Give a file with a prompt in each line, or a list of prompts."
        message = f"It cannot be read ({error.strerror})."
        raise ValidationError(
            [FieldProblem(field="prompts", value=str(path), message=message, remedy=remedy)]
        ) from None
    return _refusing("prompts", str(path), partial(of_file, text, path.name))


def _refusing(field: str, value: str, read: Callable[[], Read]) -> Read:
    try:
        return read()
    except PromptSetError as error:
        problem = FieldProblem(field=field, value=value, message=error.message, remedy=error.remedy)
        raise ValidationError([problem]) from None
