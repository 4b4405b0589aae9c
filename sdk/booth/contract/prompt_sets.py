"""Prompts to evaluate a subject with: the paper's sets and applications by name, a user's own file, and the file of
google/dreambooth as it is.

A template holds `{0}`, the identifier, and `{1}`, the class noun, as google/dreambooth writes them, or `{subject}` for
both. Pure: no file is read here.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from booth.contract import limits

IDENTIFIER, NOUN, SUBJECT = "{0}", "{1}", "{subject}"
_BOTH = f"{IDENTIFIER} {NOUN}"


@dataclass
class PromptSetError(Exception):
    """Why prompts are refused, and what to do."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"

    def __reduce__(self) -> tuple[type["PromptSetError"], tuple[str, str]]:
        return type(self), (self.message, self.remedy)


def _with(phrases: str) -> tuple[str, ...]:
    return tuple(f"a {_BOTH} {phrase.strip()}" for phrase in phrases.strip().splitlines())


def _being(words: str) -> tuple[str, ...]:
    return tuple(f"a {word.strip()} {_BOTH}" for word in words.split(","))


# The 25 prompts for objects and for live subjects: the paper's supplement, as google/dreambooth publishes them.
_PLACES = _with("""in the jungle
in the snow
on the beach
on a cobblestone street
on top of pink fabric
on top of a wooden floor
with a city in the background
with a mountain in the background
with a blue house in the background
on top of a purple rug in a forest""")
_MORE_PLACES = _with("""with a wheat field in the background
with a tree and autumn leaves in the background
with the Eiffel Tower in the background
floating on top of water
floating in an ocean of milk
on top of green grass with sunflowers around it
on top of a mirror
on top of the sidewalk in a crowded street
on top of a dirt road
on top of a white rug""")
_OUTFITS = _with("""wearing a red hat
wearing a santa hat
wearing a rainbow scarf
wearing a black top hat and a monocle
in a chef outfit
in a firefighter outfit
in a police outfit
wearing pink glasses
wearing a yellow shirt
in a purple wizard outfit""")
_PROPERTIES = _being("red, purple, shiny, wet, cube shaped")

# Section 4.4 and figures of the paper, in its wording where it gives one.
_PAINTERS = ("Vincent van Gogh", "Michelangelo", "Rembrandt", "Johannes Vermeer", "Leonardo da Vinci")
_ART = (
    *(f"a painting of a {_BOTH} in the style of {painter}" for painter in _PAINTERS),
    f"a painting of a {_BOTH} in the style of Pierre-Auguste Renoir",
    f"a statue of a {_BOTH} in the style of Michelangelo",
    f"a pencil drawing of a {_BOTH}",
)
_VIEWPOINTS = _with("""seen from the top
seen from the bottom
seen from the side
seen from the back
seen from the front""")
_EXPRESSIONS = _being("depressed, sleeping, sad, joyous, crying, frowning, screaming")
_CROSSES = tuple(f"a cross of a {_BOTH} and a {animal}" for animal in ("bear", "panda", "koala", "lion", "hippo"))
_MATERIALS = _being("red, purple, pink, blue, yellow, wooden, golden, transparent glass")
_ON_OBJECTS = _with("""with a red ribbon around it
with a blue bow on top
wearing a santa hat
wearing sunglasses
covered in stickers""")

# Contexts of the offline world in examples/tinyworld/, in its captions' words.
_TINYWORLD = tuple(
    f"a photo of a {_BOTH} {place}"
    for place in (
        "in the jungle",
        "on the beach",
        "in the snow",
        "on the moon",
        "in the city",
        "on a wooden floor",
        "in the sea",
        "in the desert",
    )
)

SETS: dict[str, tuple[str, ...]] = {
    "objects": (*_PLACES, *_MORE_PLACES, *_PROPERTIES),
    "live": (*_PLACES, *_OUTFITS, *_PROPERTIES),
    "recontextualisation-objects": (*_PLACES, *_MORE_PLACES),
    "recontextualisation-live": _PLACES,
    "art": _ART,
    "viewpoints": _VIEWPOINTS,
    "expressions-live": _EXPRESSIONS,
    "properties-objects": _MATERIALS,
    "properties-live": _CROSSES,
    "accessories-objects": _ON_OBJECTS,
    "accessories-live": _OUTFITS,
    "tinyworld": _TINYWORLD,
}
"""Every prompt set by name."""


def named(name: str) -> list[str]:
    """The templates of a set. Raises PromptSetError, naming the known ones, for a name that is none."""
    if name not in SETS:
        raise PromptSetError(f"There is no prompt set {name!r}.", f"Take one of {', '.join(SETS)}, or give a file.")
    return list(SETS[name])


def of_file(text: str, name: str = "the prompt file") -> list[str]:
    """One template a line, checked; empty lines are left out. Raises PromptSetError, naming the line."""
    lines = [(number, line.strip()) for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1)]
    templates = [(number, line) for number, line in lines if line]
    if not templates:
        raise PromptSetError(f"{name} has no prompt in it.", f"Write one a line, such as: a {SUBJECT} in the snow")
    if len(templates) > limits.MAX_EVALUATION_PROMPTS:
        most = limits.MAX_EVALUATION_PROMPTS
        raise PromptSetError(f"{name} has {len(templates)} prompts.", f"Give at most {most}, or several files.")
    return [checked(line, f"{name}, line {number}") for number, line in templates]


def checked(template: str, where: str = "the prompt") -> str:
    """The template as it is. Raises PromptSetError where it names no subject, or holds what no prompt may."""
    if bad := sorted({f"U+{ord(sign):04X}" for sign in template if unicodedata.category(sign) == "Cc"}):
        raise PromptSetError(f"{where} holds control characters: {', '.join(bad[:8])}.", "Take them out.")
    if len(template) > limits.MAX_PROMPT_CHARS:
        raise PromptSetError(f"{where} has {len(template)} characters.", f"Keep to {limits.MAX_PROMPT_CHARS}.")
    fields = re.findall(r"\{[^{}]*\}|[{}]", template)
    if unknown := [field for field in fields if field not in (IDENTIFIER, NOUN, SUBJECT)]:
        raise PromptSetError(
            f"{where} holds {unknown[0]!r}: {template!r}.", f"Only {SUBJECT}, {IDENTIFIER} and {NOUN} are filled in."
        )
    if not {IDENTIFIER, SUBJECT} & set(fields):
        raise PromptSetError(
            f"{where} says nowhere where the subject stands: {template!r}.",
            f"Write {SUBJECT} there, or {IDENTIFIER} for the identifier and {NOUN} for the class noun.",
        )
    return template


def filled(template: str, token: str, noun: str) -> str:
    """The template with identifier and class noun in place; either may be empty."""
    words = {SUBJECT: f"{token} {noun}", IDENTIFIER: token, NOUN: noun}
    whole = re.sub(r"\{[^{}]*\}", lambda field: words[field[0]], template)
    return re.sub(r" {2,}", " ", whole).strip()


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
