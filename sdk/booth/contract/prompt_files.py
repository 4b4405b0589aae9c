"""Files of prompts: a user's own, a template a line, and google/dreambooth's as it is. Pure: no file is read here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from booth.contract import limits
from booth.contract.prompt_sets import SUBJECT, PromptSetError, checked


def of_file(text: str, name: str = "the prompt file") -> list[str]:
    """One template a line, checked; empty lines are left out. Raises PromptSetError, naming the line."""
    lines = [(number, line.strip()) for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1)]
    templates = [(number, line) for number, line in lines if line]
    if not templates:
        raise PromptSetError(f"{name} has no prompt in it.", f"Write one a line, such as: a {SUBJECT} in the snow")
    if len(templates) > limits.MAX_SCORE_PROMPTS:
        most = limits.MAX_SCORE_PROMPTS
        raise PromptSetError(f"{name} has {len(templates)} prompts.", f"Give at most {most}, or several files.")
    return [checked(line, f"{name}, line {number}") for number, line in templates]


@dataclass(frozen=True)
class PromptFile:
    """What google/dreambooth's prompts_and_classes.txt says: each subject's class noun, and both lists of templates."""

    class_nouns: dict[str, str]
    objects: list[str]
    live: list[str]


_HEADERS = {"classes": "Classes", "prompts": "Prompts", "objects": "Object Prompts", "live": "Live Subject Prompts"}
_TEMPLATE = re.compile(
    r"""(?P<quote>['"])(?P<text>.*)(?P=quote)\.format\(\s*unique_token\s*,\s*class_token\s*\)\s*,?"""
)


def of_dreambooth(text: str, name: str = "prompts_and_classes.txt") -> PromptFile:
    """The file of google/dreambooth by its section headers. Raises PromptSetError, naming what it lacks.

    The file is no CSV, JSON or Python as a whole: a table under "Classes", then two lists of Python expressions.
    """
    sections = _sections(text.lstrip("\ufeff"))
    for key in ("classes", "objects", "live"):
        if not sections.get(key):
            header = _HEADERS[key]
            raise PromptSetError(
                f"{name} has nothing under {header!r}.", "Take the file of google/dreambooth as it is."
            )
    return PromptFile(
        class_nouns=_class_nouns(sections["classes"], name),
        objects=_templates(sections["objects"], name),
        live=_templates(sections["live"], name),
    )


def _sections(text: str) -> dict[str, list[tuple[int, str]]]:
    """The numbered lines under each header, without empty ones."""
    by_header = {header.lower(): key for key, header in _HEADERS.items()}
    sections: dict[str, list[tuple[int, str]]] = {}
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().lower() in by_header:
            current = by_header[line.strip().lower()]
        elif line.strip():
            sections.setdefault(current, []).append((number, line.strip()))
    return sections


def _class_nouns(lines: Sequence[tuple[int, str]], name: str) -> dict[str, str]:
    nouns: dict[str, str] = {}
    for number, line in lines:
        subject, comma, noun = (part.strip() for part in line.partition(","))
        if (subject, noun) == ("subject_name", "class"):
            continue
        if not (subject and comma and noun) or subject in nouns:
            odd = "is there twice" if subject in nouns else "is no pair of subject and class"
            raise PromptSetError(f"{name}, line {number}: {line!r} {odd}.", "Write subject_name,class once for each.")
        nouns[subject] = noun
    if not nouns:
        raise PromptSetError(f"{name} names no subject.", "Write subject_name,class under 'Classes'.")
    return nouns


def _templates(lines: Sequence[tuple[int, str]], name: str) -> list[str]:
    templates = []
    for number, line in lines:
        if re.fullmatch(r"prompt_list\s*=\s*\[|\]", line):
            continue
        found = _TEMPLATE.fullmatch(line)
        if found is None:
            raise PromptSetError(
                f"{name}, line {number}: {line!r} is no prompt of google/dreambooth's form.",
                "Write 'a {0} {1} in the snow'.format(unique_token, class_token)",
            )
        templates.append(checked(found["text"], f"{name}, line {number}"))
    return templates
