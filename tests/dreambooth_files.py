"""google/dreambooth: the real folder where it lies beside the checkout, and a small one of the same layout."""

from pathlib import Path

from PIL import Image

REAL = Path(__file__).parents[2] / "shared" / "data" / "dreambooth"

PROMPTS_AND_CLASSES = """Classes

subject_name,class
rex,dog
mug,mug
plushie,stuffed animal
Prompts

Object Prompts
prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]
Live Subject Prompts
prompt_list = [
'a {0} {1} wearing a santa hat'.format(unique_token, class_token),
]
"""


def write(root: Path, photos: dict[str, int]) -> Path:
    """The folder with its prompt file, and as many photos of each subject; the second of two frames (MPO)."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "prompts_and_classes.txt").write_text(PROMPTS_AND_CLASSES)
    for subject, count in photos.items():
        (root / subject).mkdir()
        for number in range(count):
            image = Image.new("RGB", (64, 64), (40 * number, 90, 120))
            frames = {"format": "MPO", "save_all": True, "append_images": [image]} if number == 1 else {}
            image.save(root / subject / f"{number:02d}.jpg", **frames)
    return root
