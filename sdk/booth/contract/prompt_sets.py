"""Prompts to evaluate a subject with: the paper's sets and applications by name, and cases made of templates.

A template holds `{0}`, the identifier, and `{1}`, the class noun, as google/dreambooth writes them, or `{subject}` for
both. Pure: no file is read here.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from booth.contract import limits
from booth.contract.jobs import ClipText, PromptCase

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

OWN = "own"
_KINDS = {
    "recontextualisation": (*_PLACES, *_MORE_PLACES, *_TINYWORLD),
    "accessory": (*_OUTFITS, *_ON_OBJECTS),
    "property": (*_PROPERTIES, *_MATERIALS, *_CROSSES),
    "art": _ART,
    "viewpoint": _VIEWPOINTS,
    "expression": _EXPRESSIONS,
}
_KIND_OF = {template: kind for kind, templates in _KINDS.items() for template in templates}


def named(name: str) -> list[str]:
    """The templates of a set. Raises PromptSetError, naming the known ones, for a name that is none."""
    if name not in SETS:
        raise PromptSetError(f"There is no prompt set {name!r}.", f"Take one of {', '.join(SETS)}, or give a file.")
    return list(SETS[name])


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
    return _filled(template, f"{token} {noun}".strip(), {IDENTIFIER: token, NOUN: noun})


def label(template: str) -> str:
    """What of a template is not the subject, such as "in the jungle" or "red": what makes the prompt what it is."""
    without = re.sub(r"\b(an?|the) +(?=\{)", "", template)
    plain = _filled(without, "...", {IDENTIFIER: "...", NOUN: ""})
    plain = re.sub(r"^(an? )?photo of( an?| the)? |^(an?|the) ", "", plain)
    return plain.removeprefix("...").removesuffix("...").strip()


def cases(
    templates: Sequence[str],
    token: str,
    noun: str,
    *,
    phrase: str | None = None,
    clip_text: ClipText = "noun",
    unseen: Collection[str] = (),
) -> list[PromptCase]:
    """One case for each template, in order. Raises PromptSetError for what `checked` refuses, or for a wrong `unseen`.

    `phrase` names the subject in what is drawn (None: "<token> <noun>"; of Textual Inversion its placeholder). What
    CLIP-T compares with is, by `clip_text`: "noun", the noun where the subject stands; "identifier", what is drawn;
    "dropped", nothing where the subject stands (Textual Inversion's own evaluation). `unseen` are labels whose context
    no training photo shows.
    """
    if not templates:
        raise PromptSetError("There is no prompt to draw.", "Name a prompt set, or give prompts.")
    labels = [label(checked(template, f"prompt {number}")) for number, template in enumerate(templates, 1)]
    if unknown := sorted(set(unseen) - set(labels)):
        known = ", ".join(repr(each) for each in labels)
        raise PromptSetError(f"No prompt has the unseen label {unknown[0]!r}.", f"The labels are {known}.")
    made = []
    for template, words in zip(templates, labels, strict=True):
        drawn = filled(template, token, noun) if phrase is None else _filled_by_phrase(template, phrase, noun)
        text = filled(template, "", noun)
        told = {"noun": text, "identifier": drawn, "dropped": filled(template, "", "")}[clip_text]
        kind = _KIND_OF.get(template, OWN)
        made.append(
            PromptCase(kind=kind, prompt=drawn, text=text, clip_text=told, label=words, is_unseen=words in unseen)
        )
    return made


def _filled_by_phrase(template: str, phrase: str, noun: str) -> str:
    """The phrase where the subject stands; a noun that stands apart from the identifier stays."""
    return _filled(template.replace(_BOTH, SUBJECT), phrase, {IDENTIFIER: phrase, NOUN: noun})


def _filled(template: str, subject: str, words: dict[str, str]) -> str:
    words = {**words, SUBJECT: subject}
    whole = re.sub(r"\{[^{}]*\}", lambda field: words[field[0]], template)
    return re.sub(r" {2,}", " ", whole).strip()
