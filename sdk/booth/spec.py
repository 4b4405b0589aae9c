"""From what a user gives to the job that is asked for, with every problem of photos and dials found at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from booth.contract.jobs import ClassImageRef, JobSpec, PhotoRef
from booth.contract.problems import FieldProblem, field_problems
from booth.images import Collection, SentFile, collect, collect_class_images
from booth.subjects import Photos, Subject

_ANY_PHOTO = PhotoRef(sha256="0" * 64, bytes=1)  # stands in where none is usable, so that the dials are checked too


@dataclass(frozen=True)
class Draft:
    """A job to be asked for. `spec` is None where dials are bad, and means nothing where photos are."""

    spec: JobSpec | None
    files: list[SentFile]
    class_images: list[ClassImageRef]
    base_model: Any
    bad_dials: list[FieldProblem]
    bad_photos: list[FieldProblem]
    warnings: list[str]


def draft(
    images: Photos, dials: dict[str, Any], more_subjects: Sequence[Subject], class_images: Photos | None = None
) -> Draft:
    """The job of these photos, dials, further subjects and class images, everything read and checked."""
    collections, own = [collect(images)], [collect_class_images(class_images)]
    further: list[Any] = []
    bad_dials: list[FieldProblem] = []
    for number, subject in enumerate(_listed(more_subjects)):
        field = f"more_subjects.{number}"
        if not isinstance(subject, Subject):
            bad_dials.append(_no_subject(field, subject))
            further.append({"class_noun": "any", "images": [_ANY_PHOTO]})
            continue
        collection = collect(subject.images, f"{field}.images")
        collections.append(collection)
        own.append(collect_class_images(subject.class_images, f"{field}.class_images"))
        further.append(
            {
                "token": subject.token,
                "class_noun": subject.class_noun,
                "class_prompt": subject.class_prompt,
                "images": _refs(collection),
                "class_images": _class_refs(own[-1]),
            }
        )
    try:
        spec: JobSpec | None = JobSpec(
            images=_refs(collections[0]), class_images=_class_refs(own[0]), more_subjects=further, **dials
        )
    except pydantic.ValidationError as error:
        bad_dials += field_problems(error.errors())
        spec = None
    return Draft(
        spec=spec,
        files=[file for collection in [*collections, *own] for file in collection.files],
        class_images=[photo.class_ref for collection in own for photo in collection.photos],
        base_model=dials["base_model"],
        bad_dials=bad_dials,
        bad_photos=[problem for collection in [*collections, *own] for problem in collection.problems],
        warnings=[text for collection in [*collections, *own] for text in collection.warnings],
    )


def _listed(more_subjects: Any) -> list[Any]:
    return list(more_subjects) if isinstance(more_subjects, Iterable) else [more_subjects]


def _no_subject(field: str, value: object) -> FieldProblem:
    message, remedy = f"It is a {type(value).__name__}.", "Give booth.Subject(images, token, class_noun)."
    return FieldProblem(field=field, value="", message=message, remedy=remedy)


def _class_refs(collection: Collection) -> list[ClassImageRef]:
    return [photo.class_ref for photo in collection.photos]


def _refs(collection: Collection) -> list[PhotoRef]:
    return [photo.ref for photo in collection.photos] or [_ANY_PHOTO]
