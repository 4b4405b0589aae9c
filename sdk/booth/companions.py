"""The files beside a photo that belong to it: photo.txt is its caption, photo.mask.png its mask."""

import unicodedata
from pathlib import Path

from booth.contract import limits
from booth.contract.photos import PhotoError

CAPTION_SUFFIX = ".txt"
_MASK_SUFFIX = ".mask.png"
_MOST_BYTES = 4 * limits.MAX_PROMPT_CHARS  # UTF-8's longest characters have 4


def caption_path(photo: Path) -> Path:
    """Where the caption of a photo lies, if it has one."""
    return photo.with_name(photo.stem + CAPTION_SUFFIX)


def mask_path(photo: Path) -> Path:
    """Where the mask of a photo lies, if it has one."""
    return photo.with_name(photo.stem + _MASK_SUFFIX)


def is_mask(path: Path) -> bool:
    """True for names such as photo.mask.png and photo.mask.jpg: no photos, whether or not they are taken as masks."""
    return Path(path.stem).suffix.lower() == ".mask"


def read_caption(path: Path) -> str:
    """The caption in one line. Raises PhotoError where the file holds none."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        remedy = "Give a file that you may read, or take it away."
        raise PhotoError(f"The caption cannot be read ({error.strerror}).", remedy) from None
    if len(data) > _MOST_BYTES:
        raise _too_long()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PhotoError("The caption is not text in UTF-8.", "Save it as UTF-8 text.") from None
    return checked_caption(text)


def checked_caption(text: object) -> str:
    """The caption in one line, its line breaks as spaces. Raises PhotoError where it cannot be one."""
    if not isinstance(text, str):
        raise PhotoError(f"The caption is a {type(text).__name__}.", "Give text.")
    line = " ".join(text.split())
    if not line:
        raise PhotoError("The caption is empty.", "Describe the photo, or give no caption.")
    if len(line) > limits.MAX_PROMPT_CHARS:
        raise _too_long()
    if any(unicodedata.category(character) == "Cc" for character in line):
        raise PhotoError("The caption holds control characters.", "Save it as plain UTF-8 text.")
    return line


def _too_long() -> PhotoError:
    return PhotoError(
        f"The caption has more than {limits.MAX_PROMPT_CHARS} characters.",
        "Shorten it; text encoders read some 50 words.",
    )
