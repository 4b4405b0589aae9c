"""A contact sheet of Prompt-to-Prompt edits with a personalised tinyworld dog.

python examples/tinyworld/edit_sheet.py MODEL edits.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from contact_sheet import Row, contact_sheet
from PIL.Image import Image

import booth

BEACH, JUNGLE, HAT = "on the beach", "in the jungle", "wearing a red hat"
HATTED = f"a photo of sks dog {JUNGLE} {HAT}"
LOW = {"cross_replace_steps": 0.4, "self_replace_steps": 0.2}
LATE = {"cross_replace_steps": 1.0, "self_replace_steps": 0.2}
CELL_PX = 144
EDITS = [  # title, edited prompt, source prompt, seed, options
    (
        'replace: "a dog" by "sks dog", injected in 0.4',
        f"a photo of sks dog {BEACH}",
        f"a photo of a dog {BEACH}",
        1,
        LOW,
    ),
    ('replace: "desert" by "snow"', "a photo of a teapot in the snow", "a photo of a teapot in the desert", 3, {}),
    (f'refine: "{HAT}" added', HATTED, f"a photo of sks dog {JUNGLE}", 1, {"mode": "refine"}),
    ('reweight: "hat" times -2', HATTED, HATTED, 1, LATE | {"mode": "reweight", "words": {"hat": -2.0}}),
    ('reweight: "hat" times 3', HATTED, HATTED, 1, LATE | {"mode": "reweight", "words": {"hat": 3.0}}),
    (
        f'refine with local blend by "hat": "{HAT}" added',
        f"a photo of a dog {HAT} {BEACH}",
        f"a photo of a dog {BEACH}",
        2,
        LOW | {"mode": "refine", "blend": ["hat"]},
    ),
]
NOTHING = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0, "blend": []}
Draw = Callable[[str, booth.PromptEdit, int], tuple[Image, Image]]


def rows_of(draw: Draw) -> list[Row]:
    """For each edit the source, the edited prompt's picture of that seed, and the edit.

    `draw` makes of prompt, edit and seed the source's picture and the edited one.
    """
    rows = []
    for title, prompt, source_prompt, seed, options in EDITS:
        source, edited = draw(prompt, booth.PromptEdit(source_prompt=source_prompt, **options), seed)
        _, free = draw(prompt, booth.PromptEdit(source_prompt=source_prompt, **options | NOTHING), seed)
        rows.append(Row(title, [source, free, edited]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the id of a model of examples/tinyworld/subjects/dog")
    parser.add_argument("out", type=Path, help="where the contact sheet goes")
    arguments = parser.parse_args()
    with booth.Client() as client:
        model = client.models.get(arguments.model)

        def draw(prompt: str, edit: booth.PromptEdit, seed: int) -> tuple[Image, Image]:
            (picture,) = model.generate(prompt, seed=seed, edit=edit)
            assert picture.source is not None
            return picture.source.image, picture.image

        contact_sheet(rows_of(draw), CELL_PX).save(arguments.out)


if __name__ == "__main__":
    main()
