"""Rows of pictures beside the claims: drawn by the published models of a subject's cells, equal seeds in every row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from claim_arms import (
    ARMS,
    ARMS_OF_CLAIMS,
    LIMITS,
    limit_templates,
    shown_name,
)
from contact_sheet import Row
from PIL import Image
from world import CONTEXTS, Subject

import booth

PHOTOS = Path(__file__).parent / "subjects"
PICTURES, SEED = 5, 1
Models = Mapping[str, booth.Model]  # of one subject and seed, by arm


def rows_for(claim: str, client: booth.Client, subject: Subject, models: Models) -> list[Row]:
    """What is shown beside a claim; arms that have no model are left out."""
    there = [arm for arm in ARMS_OF_CLAIMS[claim] if arm in models]
    if not there:
        return []
    photos = Row("The photos", [Image.open(path) for path in sorted((PHOTOS / subject.name).glob("*.png"))])
    rows = {
        "prior": lambda: class_rows(client, subject, models, there),
        "prior-equal-fidelity": lambda: [],
        "limits": lambda: limit_rows(subject, models[there[0]]),
    }.get(claim, lambda: subject_rows(claim, subject, models, there))()
    return [photos, *rows] if rows else []


def class_rows(client: booth.Client, subject: Subject, models: Models, arms: Sequence[str]) -> list[Row]:
    """The bare class: as the base draws it, and after training with and without the prior."""
    prompt = f"a photo of a {subject.noun}"
    base = client.generate(prompt, num_images=PICTURES, seed=SEED)
    return [Row(f'base: "{prompt}"', images(base)), *(drawn_row(arm, models[arm], prompt) for arm in arms)]


def subject_rows(claim: str, subject: Subject, models: Models, arms: Sequence[str]) -> list[Row]:
    """The subject where no photo shows it, by every arm."""
    place = CONTEXTS[subject.held_out_contexts[0]]
    return [
        drawn_row(shown_name(claim, arm), models[arm], f"a photo of {ARMS[arm].phrase(subject)} {place}")
        for arm in arms
    ]


def limit_rows(subject: Subject, model: booth.Model) -> list[Row]:
    """What the method cannot do: one row for each limit that the paper names."""
    prompts = [template.format(*ARMS[LIMITS].phrase(subject).split(" ", 1)) for template in limit_templates(subject)]
    names = ("an unknown context", "an entangled context", "like a training photo")
    return [drawn_row(name, model, prompt) for name, prompt in zip(names, prompts, strict=True)]


def drawn_row(name: str, model: booth.Model, prompt: str) -> Row:
    return Row(f'{name}: "{prompt}"', images(model.generate(prompt, num_images=PICTURES, seed=SEED)))


def images(pictures: Sequence[booth.GeneratedImage]) -> list[Image.Image]:
    return [picture.image for picture in pictures]
