"""A contact sheet of Prompt-to-Prompt edits with a personalised tinyworld dog: python edit_sheet.py MODEL edits.png"""

import argparse
from collections.abc import Callable
from pathlib import Path

from contact_sheet import Row, contact_sheet
from PIL.Image import Image

import booth

Draw = Callable[[str, booth.PromptEdit, int], tuple[Image, Image]]
"""Prompt, edit and seed to the source's picture and the edited one."""

EDITS: list[tuple[str, str, int, booth.PromptEdit]] = []


def rows_of(draw: Draw) -> list[Row]:
    """For each edit the source, the edited prompt's picture without injection, and the edit."""
    rows = []
    for title, prompt, seed, edit in EDITS:
        free = edit.model_copy(update={"cross_replace_steps": 0.0, "self_replace_steps": 0.0, "blend": []})
        source, edited = draw(prompt, edit, seed)
        rows.append(Row(title, [source, draw(prompt, free, seed)[1], edited]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="the id of a model of examples/tinyworld/subjects/dog, as `boothctl models` lists it"
    )
    parser.add_argument("out", type=Path, help="where the contact sheet goes")
    arguments = parser.parse_args()
    model = booth.Client().models.get(arguments.model)

    def draw(prompt: str, edit: booth.PromptEdit, seed: int) -> tuple[Image, Image]:
        (picture,) = model.generate(prompt, seed=seed, edit=edit)
        assert picture.source is not None
        return picture.source.image, picture.image

    contact_sheet(rows_of(draw)).save(arguments.out)


if __name__ == "__main__":
    main()
