"""A job as a file, for `boothctl submit --config`: YAML or JSON; paths are relative to the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic

from booth.contract.jobs import JobSpec, SubjectSpec, TrainingOptions
from booth.contract.problems import FieldProblem
from booth.errors import ValidationError
from booth.subjects import Photo, Subject

KEYS = [*JobSpec.model_fields, "idempotency_key"]
_PHOTO_KEYS = ["image", "caption", "mask"]


def read(path: Path) -> dict[str, Any]:
    """The arguments of `Client.personalize` that the file gives. Keys without a value count as not given.

    Raises ValidationError naming every key that is unknown, twice there or of the wrong kind. Values beyond their
    limits and bad photos are found by `personalize`.
    """
    file = JobFile(path)
    values = file.mapping(parsed(path), "", KEYS)
    file.check_kinds(values, JobSpec, "")
    if "images" in values:
        values["images"] = list(file.photos(values["images"], "images"))
    if "class_images" in values:
        values["class_images"] = list(file.photos(values["class_images"], "class_images"))
    if "more_subjects" in values:
        values["more_subjects"] = list(file.subjects(values["more_subjects"]))
    if "options" in values:
        values["options"] = file.mapping(values["options"], "options", list(TrainingOptions.model_fields))
        file.check_kinds(values["options"], TrainingOptions, "options.")
    if file.problems:
        raise ValidationError(file.problems)
    return values


@dataclass
class JobFile:
    """A file that is being read, and what was found wrong with it."""

    path: Path
    problems: list[FieldProblem] = field(default_factory=list)

    def blame(self, place: str, value: object, message: str, remedy: str) -> None:
        """One more problem at this place of the file."""
        name = f"{self.path}: {place}" if place else str(self.path)
        shown = "" if isinstance(value, dict | list) or value is None else repr(value)
        self.problems.append(FieldProblem(field=name, value=shown, message=message, remedy=remedy))

    def mapping(self, value: object, place: str, keys: list[str]) -> dict[str, Any]:
        """The named values that are given, of these keys alone."""
        if not isinstance(value, dict):
            self.blame(place, value, f"It is a {_kind_name(value)}.", f"Give names with their values: {keys[0]}: ...")
            return {}
        for key in value:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                remedy = f"Did you mean {near[0]}?" if near else f"Use {', '.join(keys)}."
                self.blame(f"{place}.{key}".lstrip("."), None, "There is no such key.", remedy)
        return {key: given for key, given in value.items() if key in keys and given is not None}

    def check_kinds(self, values: dict[str, Any], model: type[pydantic.BaseModel], place: str) -> None:
        """Words that YAML reads as something else, such as no and 007, and truth values where numbers belong."""
        for key, value in values.items():
            annotation = model.model_fields[key].annotation if key in model.model_fields else str
            kinds = set(_kinds(annotation))
            if str in kinds and not isinstance(value, str):
                self.blame(f"{place}{key}", value, f"It is read as a {_kind_name(value)}.", "Put it in quotes.")
            elif isinstance(value, bool) and kinds & {int, float}:
                self.blame(f"{place}{key}", value, "It is read as true or false.", "Give a number.")

    def photos(self, value: object, place: str) -> Iterator[str | Photo]:
        """Paths, folders and globs; photos with caption and mask."""
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            here = f"{place}.{number}" if isinstance(value, list) else place
            if isinstance(item, str):
                yield self.resolved(item)
                continue
            if not isinstance(item, dict):
                remedy = "Give a path, or image: with caption: and mask:."
                self.blame(here, item, f"It is a {_kind_name(item)}.", remedy)
                continue
            given = self.mapping(item, here, _PHOTO_KEYS)
            if bad := [key for key, text in given.items() if not isinstance(text, str)]:
                self.blame(f"{here}.{bad[0]}", given[bad[0]], "It is no text.", "Put it in quotes.")
            elif "image" in given:
                mask = self.resolved(given["mask"]) if "mask" in given else None
                yield Photo(self.resolved(given["image"]), given.get("caption"), mask)
            else:
                self.blame(here, item, "It has no image.", "Add image: with the path of the photo.")

    def subjects(self, value: object) -> Iterator[Subject]:
        """The further subjects."""
        if not isinstance(value, list):
            self.blame("more_subjects", value, f"It is a {_kind_name(value)}.", "Give a list, each with images.")
            return
        for number, item in enumerate(value):
            place = f"more_subjects.{number}"
            given = self.mapping(item, place, list(SubjectSpec.model_fields))
            self.check_kinds(given, SubjectSpec, f"{place}.")
            images = list(self.photos(given.get("images", []), f"{place}.images"))
            own = given.get("class_images")
            class_images = None if own is None else list(self.photos(own, f"{place}.class_images"))
            token, class_noun = given.get("token"), given.get("class_noun", "")
            yield Subject(images, token, class_noun, class_images, given.get("class_prompt"))

    def resolved(self, path: str) -> str:
        """A path of the file as seen from here."""
        return str(self.path.parent / Path(path).expanduser())


def parsed(path: Path) -> object:
    """What the file says. Raises ValidationError where it is neither YAML nor JSON, or says something twice."""
    import yaml  # only those who use a file wait for it

    try:
        if path.suffix.lower() == ".json":
            return json.loads(path.read_bytes(), object_pairs_hook=_once)
        text = path.read_bytes()
        _check_once(yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
        return {} if values is None else values
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = f"It cannot be read: {' '.join(str(error).split())}."
        remedy = "Write it as YAML, such as steps: 800, or as JSON with a name that ends in .json."
        raise ValidationError([FieldProblem(field=str(path), value="", message=message, remedy=remedy)]) from None


def _check_once(root: Any) -> None:
    """No key of any mapping is there twice; YAML itself would take the last. Raises ValueError."""
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or isinstance(node.value, str) or id(node) in known:
            continue
        known.add(id(node))
        names: set[object] = set()
        for key, value in (part if isinstance(part, tuple) else (None, part) for part in node.value):
            waiting.append(value)
            if key is not None and isinstance(key.value, str) and key.value in names:
                raise ValueError(f"the key {key.value} is there twice, again in line {key.start_mark.line + 1}")
            if key is not None and isinstance(key.value, str):
                names.add(key.value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the key {twice[0]} is there twice")
    return dict(pairs)


def _kinds(annotation: Any) -> Iterator[type]:
    """The plain types that a field takes: bool | None gives bool and NoneType, a constrained str gives str."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(args[0])
    elif origin is Literal:
        yield from map(type, args)
    elif origin in (Union, UnionType):
        yield from (kind for part in args for kind in _kinds(part))
    else:
        yield origin or annotation


def _kind_name(value: object) -> str:
    names = {bool: "truth value", int: "number", float: "number", str: "text", dict: "mapping", type(None): "blank"}
    return names.get(type(value), type(value).__name__)
