"""A folder in the layout of google/dreambooth: a folder of photos for each subject, and the prompt file beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from booth.contract.problems import FieldProblem
from booth.contract.prompt_files import PromptFile, of_dreambooth
from booth.contract.prompt_sets import PromptSetError
from booth.errors import ValidationError
from booth.sources import photos_in

PROMPT_FILE = "prompts_and_classes.txt"
LIVE_NOUNS = frozenset({"cat", "dog"})  # the live subjects of google/dreambooth; its file does not say which they are
MIN_PHOTOS = 2  # one photo has no other to be compared with, so there is no ceiling


@dataclass(frozen=True)
class BenchmarkSubject:
    """One subject with its photos, in the order of their names."""

    name: str
    class_noun: str
    is_live: bool
    photos: tuple[Path, ...]


@dataclass(frozen=True)
class DreamBoothFolder:
    """The subjects in the table's order, and the templates of the folder's own prompt file."""

    path: Path
    subjects: tuple[BenchmarkSubject, ...]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def prompts_of(self, subject: BenchmarkSubject) -> tuple[str, ...]:
        """The templates that a subject is drawn with."""
        return self.live_prompts if subject.is_live else self.object_prompts


def read(
    folder: str | Path, subjects: Sequence[str] | None = None, live_nouns: Collection[str] = LIVE_NOUNS
) -> DreamBoothFolder:
    """The folder's subjects: all of its table, or those named. Its prompt file may lie in a `dataset` folder within.

    Raises ValidationError with a problem for everything that is missing.
    """
    root = _root(Path(folder).expanduser())
    table = _prompt_file(root / PROMPT_FILE)
    wanted = _wanted(table, subjects)
    problems: list[FieldProblem] = []
    found = [
        BenchmarkSubject(name, table.class_nouns[name], table.class_nouns[name] in live_nouns, photos)
        for name in wanted
        if (photos := _photos(root / name, root, table, problems))
    ]
    if problems:
        raise ValidationError(problems)
    return DreamBoothFolder(root, tuple(found), tuple(table.objects), tuple(table.live))


def _root(folder: Path) -> Path:
    """Where the prompt file lies."""
    for place in (folder, folder / "dataset"):
        if (place / PROMPT_FILE).is_file():
            return place
    there = "has none" if folder.is_dir() else "is no folder"
    raise _refused("folder", str(folder), f"It {there} with the file {PROMPT_FILE}.", "Clone google/dreambooth there.")


def _prompt_file(path: Path) -> PromptFile:
    try:
        return of_dreambooth(path.read_text(encoding="utf-8"), str(path))
    except PromptSetError as error:
        raise _refused("folder", str(path), error.message, error.remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refused("folder", str(path), f"It cannot be read ({error}).", "Fetch it again.") from None


def _wanted(table: PromptFile, subjects: Sequence[str] | None) -> list[str]:
    """The names asked for in the table's order, each once."""
    if subjects is None:
        return list(table.class_nouns)
    known = ", ".join(table.class_nouns)
    if unknown := [name for name in subjects if name not in table.class_nouns]:
        raise ValidationError(
            [
                FieldProblem(
                    field="subjects", value=name, message="It is not in the table.", remedy=f"Known are {known}."
                )
                for name in unknown
            ]
        )
    if not subjects:
        raise _refused("subjects", "", "No subject is named.", f"Name some of {known}, or leave it out for all.")
    return [name for name in table.class_nouns if name in subjects]


def _photos(folder: Path, root: Path, table: PromptFile, problems: list[FieldProblem]) -> tuple[Path, ...]:
    """The photos of one subject; (), and a problem, where there are too few."""
    photos = tuple(photo.image for photo in photos_in([folder], []) if isinstance(photo.image, Path))
    if folder.is_dir() and len(photos) >= MIN_PHOTOS:
        return photos
    if not folder.is_dir():
        there = ", ".join(name for name in table.class_nouns if (root / name).is_dir()) or "none"
        message, remedy = "The table names this subject, and it has no folder.", f"Folders are there for: {there}."
    else:
        message = f"It has {len(photos)} photo{'' if len(photos) == 1 else 's'}."
        remedy = f"Give {MIN_PHOTOS} or more: the ceiling compares photos with each other. Or leave the subject out."
    problems.append(FieldProblem(field="subjects", value=str(folder), message=message, remedy=remedy))
    return ()


def _refused(field: str, value: str, message: str, remedy: str) -> ValidationError:
    return ValidationError([FieldProblem(field=field, value=value, message=message, remedy=remedy)])
