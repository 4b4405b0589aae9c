"""From subjects, arms and what is varied to the cells of a group, with every problem found before anything is sent."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import pydantic

from booth.contract import limits
from booth.contract.groups import CellSpec, GroupKind, GroupSpec
from booth.contract.jobs import ClassImageRef, JobSpec, PhotoRef, ScoringOptions, TrainingOptions
from booth.contract.problems import FieldProblem, field_problems
from booth.errors import ImageValidationError, ValidationError
from booth.images import Collection, SentFile, collect, collect_class_images
from booth.subjects import Photos, Subject

Changes: TypeAlias = "Mapping[str, Any]"
Arms: TypeAlias = "Mapping[str, Changes | Callable[[str], Changes]]"
"""Arms by name: what of `personalize`'s dials each changes, for all subjects alike or by a function of their name."""

DEFAULT_ARM = "default"
MIN_SCORED_PHOTOS = 2  # the ceiling compares photos with each other
OPTIONS = tuple(TrainingOptions.model_fields)
DIALS = tuple(name for name in JobSpec.model_fields if name not in ("images", "more_subjects", "seed", "name"))
KNOWN = (*DIALS, "images", "num_photos", *OPTIONS)


@dataclass(frozen=True)
class Plan:
    """A group to be asked for. `uploads` has one job for each distinct set of pictures, and `files` all of these."""

    spec: GroupSpec
    uploads: list[JobSpec]
    files: list[SentFile]
    class_images: list[ClassImageRef]
    warnings: list[str]


@dataclass(frozen=True)
class Arm:
    """One arm for one subject: what it changes, and what of that its table shows."""

    name: str
    changes: dict[str, Any]
    values: dict[str, str]


@dataclass
class _Pictures:
    """Photos and class images, each given thing read once."""

    photos: dict[int, Collection] = field(default_factory=dict)
    own: dict[int, Collection] = field(default_factory=dict)
    given: list[Any] = field(default_factory=list)  # kept, so that no id comes to name another thing

    def of(self, images: Photos, field_name: str) -> Collection:
        """The photos behind what was given."""
        self.given.append(images)
        if id(images) not in self.photos:
            self.photos[id(images)] = collect(images, field_name)
        return self.photos[id(images)]

    def class_of(self, images: Photos | None, field_name: str) -> Collection:
        """The class images behind what was given."""
        self.given.append(images)
        if id(images) not in self.own:
            self.own[id(images)] = collect_class_images(images, field_name)
        return self.own[id(images)]

    @property
    def all(self) -> list[Collection]:
        return [*self.photos.values(), *self.own.values()]


def plan(
    kind: GroupKind,
    subjects: Subject | Mapping[str, Subject],
    arms: Arms | None = None,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    dials: Changes | None = None,
    scoring: ScoringOptions | None = None,
    seeds: Sequence[int] = (0,),
    baseline: str | None = None,
    name: str | None = None,
    cells_at_once: int | None = None,
) -> Plan:
    """The group of all subjects in all arms with all seeds. Raises ValidationError or ImageValidationError, naming all
    that is wrong."""
    problems: list[FieldProblem] = []
    named = named_subjects(subjects)
    varied = combinations(vary or {}, problems)
    pictures = _Pictures()
    cells: list[CellSpec] = []
    total = len(named) * len(arms or {DEFAULT_ARM: {}}) * len(varied) * len(seeds)
    problems += _problems_of_size(total, len(named), len(seeds))
    for subject_name, subject in named.items() if not problems else ():
        bad_arms: list[FieldProblem] = []
        of_subject = arms_of(subject_name, arms, varied, dials or {}, bad_arms)
        bad_arms += _alike(subject_name, of_subject)
        problems += bad_arms
        for arm in of_subject if not bad_arms else ():
            job = _job(subject_name, subject, arm, scoring, pictures, problems)
            for seed in seeds if job is not None else ():
                assert job is not None
                seeded = job.model_copy(update={"seed": seed})
                cells.append(CellSpec(subject=subject_name, arm=arm.name, seed=seed, values=arm.values, job=seeded))
    bad_photos = [problem for collection in pictures.all for problem in collection.problems]
    if problems:
        raise ValidationError([*_once(problems), *bad_photos])
    if bad_photos:
        raise ImageValidationError(bad_photos)
    chosen = _baseline(baseline, list(dict.fromkeys(cell.arm for cell in cells)))
    spec = _group_spec(kind, name or _name(vary, arms), cells, chosen, cells_at_once)
    return Plan(
        spec=spec,
        uploads=_distinct(spec),
        files=[file for collection in pictures.all for file in collection.files],
        class_images=[photo.class_ref for collection in pictures.own.values() for photo in collection.photos],
        warnings=list(dict.fromkeys(text for collection in pictures.all for text in collection.warnings)),
    )


def named_subjects(subjects: Subject | Mapping[str, Subject]) -> dict[str, Subject]:
    """The subjects by name; a single one is called by its token or class noun."""
    if isinstance(subjects, Subject):
        return {subjects.token or subjects.class_noun or "subject": subjects}
    return dict(subjects)


def combinations(vary: Mapping[str, Sequence[Any]], problems: list[FieldProblem]) -> list[dict[str, Any]]:
    """Every combination of the varied dials' values; one empty one where nothing is varied."""
    for dial, values in vary.items():
        if not isinstance(values, Iterable) or isinstance(values, str) or not list(values):
            remedy = "Give a list of one value or more."
            problems.append(_problem(f"vary.{dial}", repr(values), "It is no list of values.", remedy))
    if problems:
        return [{}]
    return [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]


def arms_of(
    subject: str,
    arms: Arms | None,
    varied: Sequence[Mapping[str, Any]],
    dials: Changes,
    problems: list[FieldProblem],
) -> list[Arm]:
    """Every arm in every combination for one subject; what is varied outranks the arm's changes, these the dials."""
    made = []
    for name, given in (arms or {DEFAULT_ARM: {}}).items():
        changes = given(subject) if callable(given) else given
        for combination in varied:
            shown = ", ".join(f"{dial}={value}" for dial, value in combination.items())
            full = shown if arms is None and shown else f"{name}, {shown}" if shown else name
            merged = merged_changes(dials, changes, combination)
            problems += _unknown(f"arms.{name}" if name in (arms or {}) else "vary", {**changes, **combination})
            problems += _unknown("dials", dials)
            values = {dial: str(value) for dial, value in {**changes, **combination}.items() if _is_plain(value)}
            made.append(Arm(full, merged, values))
    return made


def merged_changes(*changes: Changes) -> dict[str, Any]:
    """All changes as one, later ones first in rank. Options may be named with the dials or lie under "options"."""
    merged: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for each in changes:
        for name, value in each.items():
            if name == "options":
                given = value.model_dump(exclude_unset=True) if isinstance(value, TrainingOptions) else dict(value)
                options |= given
            elif name in OPTIONS:
                options[name] = value
            else:
                merged[name] = value
    return {**merged, "options": options}


def _job(
    name: str,
    subject: Subject,
    arm: Arm,
    scoring: ScoringOptions | None,
    pictures: _Pictures,
    problems: list[FieldProblem],
) -> JobSpec | None:
    """The job of a cell, without its seed; None, and what is wrong with it, where it cannot be one."""
    changes = dict(arm.changes)
    photos = pictures.of(changes.pop("images", subject.images), f"subjects.{name}.images")
    own = pictures.class_of(changes.pop("class_images", subject.class_images), f"subjects.{name}.class_images")
    options = dict(changes.pop("options"))
    if changes.get("method") == "ip_adapter":
        changes = {"num_photos": 1, "token": None, **changes}  # one photo is read, and no token taught
    count = changes.pop("num_photos", None)
    refs = [photo.ref for photo in photos.photos]
    if not refs:
        return None  # its collection says why
    if count is not None and not 1 <= count <= len(refs):
        remedy = f"Give 1 to {len(refs)}, or more photos."
        problems.append(_problem("num_photos", str(count), f"Subject {name} has {len(refs)} photos.", remedy))
        return None
    if scoring is not None and "scoring" not in options:
        options["scoring"] = _scoring_of(scoring, subject, changes)
    if options.get("scoring") and len(refs) < MIN_SCORED_PHOTOS:
        remedy = f"Give {MIN_SCORED_PHOTOS} or more: scores compare photos with each other. Or leave the subject out."
        problems.append(_problem(f"subjects.{name}.images", "", f"Subject {name} has one photo.", remedy))
        return None
    if options.get("scoring"):
        refs = [ref if place < (count or len(refs)) else _held_out(ref) for place, ref in enumerate(refs)]
    else:
        refs = refs[:count]
    given = {"token": subject.token, "class_noun": subject.class_noun, "class_prompt": subject.class_prompt, **changes}
    try:
        class_images = [photo.class_ref for photo in own.photos]
        return JobSpec(images=refs, class_images=class_images, options=options, **given)
    except pydantic.ValidationError as error:
        place = f"{name}, {arm.name}"
        found = field_problems(error.errors())
        problems += [each.model_copy(update={"field": f"{place}: {each.field}"}) for each in found]
        return None


def _held_out(ref: PhotoRef) -> PhotoRef:
    """The photo as one that arms with fewer are scored with too, so that all are measured alike."""
    return ref.model_copy(update={"held_out": True})


def _scoring_of(scoring: ScoringOptions, subject: Subject, changes: Changes) -> ScoringOptions:
    """The scoring of a cell: its class is the subject's own whatever noun it is trained with, and steps beyond its last
    one mean its last one."""
    update: dict[str, Any] = {}
    if scoring.noun is None and changes.get("class_noun") not in (None, subject.class_noun):
        update["noun"] = subject.class_noun
    if (steps := changes.get("steps")) and any(step > steps for step in scoring.steps):
        update["steps"] = sorted({*(step for step in scoring.steps if 0 <= step <= steps), steps})
    return scoring.model_copy(update=update)


def _problems_of_size(total: int, subjects: int, seeds: int) -> list[FieldProblem]:
    if not total:
        what = "subject" if not subjects else "seed" if not seeds else "arm"
        return [_problem("subjects", "", f"There is no cell: no {what} is given.", f"Give at least one {what}.")]
    if total > limits.MAX_CELLS:
        message = f"There are {total} cells, and {limits.MAX_CELLS} are the most of one group."
        return [_problem("vary", "", message, "Vary fewer values, or make several groups.")]
    return []


def _unknown(place: str, changes: Changes) -> list[FieldProblem]:
    """A problem for each name that is no dial."""
    found = []
    for name in changes:
        if name not in (*KNOWN, "options"):
            near = difflib.get_close_matches(str(name), KNOWN, n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(KNOWN)}."
            found.append(_problem(f"{place}.{name}", "", "There is no such dial.", remedy))
    return found


def _alike(subject: str, arms: Sequence[Arm]) -> list[FieldProblem]:
    """A problem for each arm that is trained as one before it."""
    problems = []
    for number, arm in enumerate(arms):
        twin = next((each for each in arms[:number] if each.changes == arm.changes), None)
        if twin is not None:
            message = f"It is trained as the arm {twin.name!r} is."
            problems.append(_problem(f"arms.{arm.name}", subject, message, "Leave one of them out."))
    return problems


def _baseline(asked: str | None, arms: list[str]) -> str | None:
    """The arm that others are compared with: the one asked for, else the first of several."""
    if asked is None:
        return arms[0] if len(arms) > 1 else None
    if asked not in arms:
        remedy = f"Name one of: {'; '.join(arms)}."
        raise ValidationError([_problem("baseline", repr(asked), "No arm has this name.", remedy)])
    return asked


def _group_spec(
    kind: GroupKind, name: str, cells: list[CellSpec], baseline: str | None, cells_at_once: int | None
) -> GroupSpec:
    try:
        return GroupSpec(kind=kind, name=name, cells=cells, baseline=baseline, cells_at_once=cells_at_once)
    except pydantic.ValidationError as error:
        raise ValidationError(field_problems(error.errors())) from None


def _distinct(spec: GroupSpec) -> list[JobSpec]:
    """One job for each distinct set of pictures."""
    found: dict[str, JobSpec] = {}
    for cell in spec.cells:
        found.setdefault(cell.job.model_dump_json(include={"images", "class_images"}), cell.job)
    return list(found.values())


def _name(vary: Mapping[str, Sequence[Any]] | None, arms: Arms | None) -> str:
    told = ", ".join([*(arms or {}), *(vary or {})])
    return (f"sweep of {told}" if told else "sweep")[: limits.MAX_TEXT_CHARS]


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _once(problems: Iterable[FieldProblem]) -> list[FieldProblem]:
    return list({(each.field, each.message): each for each in problems}.values())


def _problem(place: str, value: str, message: str, remedy: str) -> FieldProblem:
    return FieldProblem(field=place, value=value, message=message, remedy=remedy)
