"""A sweep as a file, for `boothctl sweep sweep.yaml`: YAML or JSON; paths are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from booth.contract.jobs import ScoringOptions
from booth.contract.problems import FieldProblem, field_problems
from booth.errors import ValidationError
from booth.job_file import JobFile, parsed
from booth.subjects import Subject

_SUBJECT = ["images", "token", "class_noun", "class_images", "class_prompt"]
_KEYS = [
    "subjects",
    *_SUBJECT,
    "arms",
    "vary",
    "dials",
    "scoring",
    "seeds",
    "baseline",
    "name",
    "cells_at_once",
    "idempotency_key",
]


def read(path: Path) -> dict[str, Any]:
    """The arguments of `Client.sweep` that the file gives: subjects by name, or one at the top.

    Raises ValidationError naming every key that is unknown, twice there or of the wrong kind.
    """
    file = JobFile(path)
    values = file.mapping(parsed(path), "", _KEYS)
    top = {key: values.pop(key) for key in _SUBJECT if key in values}
    if top:
        values["subjects"] = {**_mapping(file, values.get("subjects", {}), "subjects"), "subject": top}
    values["subjects"] = {
        str(name): _subject(file, given, f"subjects.{name}")
        for name, given in _mapping(file, values.get("subjects", {}), "subjects").items()
    }
    for key in ("vary", "dials", "arms"):
        if key in values:
            values[key] = _mapping(file, values[key], key)
    for name, changes in values.get("arms", {}).items():
        values["arms"][name] = _with_pictures(file, _mapping(file, changes or {}, f"arms.{name}"), f"arms.{name}")
    if "scoring" in values:
        values["scoring"] = _scoring(file, values["scoring"])
    if file.problems:
        raise ValidationError(file.problems)
    return values


def _subject(file: JobFile, given: object, place: str) -> Subject:
    values = _with_pictures(file, file.mapping(given, place, _SUBJECT), place)
    if "images" not in values:
        file.blame(place, given, "It has no images.", "Add images: with a folder or paths.")
    return Subject(
        values.get("images", []),
        values.get("token"),
        values.get("class_noun", ""),
        values.get("class_images"),
        values.get("class_prompt"),
    )


def _with_pictures(file: JobFile, values: dict[str, Any], place: str) -> dict[str, Any]:
    """The same with its pictures found from the file's own folder."""
    given = [key for key in ("images", "class_images") if key in values]
    return values | {key: list(file.photos(values[key], f"{place}.{key}")) for key in given}


def _mapping(file: JobFile, value: object, place: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return dict(value)
    file.blame(place, value, "It is no mapping.", "Give names with their values.")
    return {}


def _scoring(file: JobFile, value: object) -> ScoringOptions | None:
    try:
        return ScoringOptions.model_validate(value)
    except pydantic.ValidationError as error:
        name = f"{file.path}: scoring"
        file.problems += [each.model_copy(update={"field": f"{name}.{each.field}"}) for each in _problems(error)]
        return None


def _problems(error: pydantic.ValidationError) -> list[FieldProblem]:
    return field_problems(error.errors())
