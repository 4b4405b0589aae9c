"""What a user may hand over where plain files do not say enough: a photo with caption and mask, a further subject."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

Source: TypeAlias = "str | Path | bytes | Image"


@dataclass(frozen=True)
class Photo:
    """One photo: a path, bytes or a PIL image.

    `caption` is the prompt that this photo is trained with, in place of "a photo of <token> <class noun>"; it should
    hold the subject's token. `mask` is a picture of the photo's size, white where the subject is: the loss of this
    photo counts there alone. Where they are None, a photo at photo.jpg takes photo.txt and photo.mask.png beside it.
    """

    image: Source
    caption: str | None = None
    mask: Source | None = None


Photos: TypeAlias = "Source | Photo | Iterable[Source | Photo]"
"""One or many photos; a path may also be a folder or a glob."""


@dataclass(frozen=True)
class Subject:
    """A further subject of a job, with photos, token (None: a rare one is picked) and class noun of its own.

    `class_images` and `class_prompt` are as those of `Client.personalize`.
    """

    images: Photos
    token: str | None = None
    class_noun: str = ""
    class_images: Photos | None = None
    class_prompt: str | None = None
