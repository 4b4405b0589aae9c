"""Write the personalisation subjects: a folder of five PNG photos each, and a JSON file of what they show.

python examples/tinyworld/write_subjects.py
"""

import json
from pathlib import Path

from world import CONTEXTS, SUBJECTS, render

FOLDER = Path(__file__).parent / "subjects"


def main() -> None:
    for subject in SUBJECTS:
        folder = FOLDER / subject.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(subject.scenes()):
            render(scene).save(folder / f"{number:02d}.png")
        about = {
            "class_noun": subject.noun,
            "contexts": [CONTEXTS[context] for context in subject.contexts],
            "held_out_contexts": [CONTEXTS[context] for context in subject.held_out_contexts],
        }
        (FOLDER / f"{subject.name}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
