"""The subject's photos: read and checked here, before anything is sent."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from booth.companions import caption_path, checked_caption, is_mask, mask_path, read_caption
from booth.contract import limits
from booth.contract.jobs import ClassImageRef, MaskRef, PhotoRef
from booth.contract.photos import PhotoError, open_mask, open_photo
from booth.contract.problems import FieldProblem
from booth.sources import listed, photos_in, shown
from booth.subjects import Photo, Photos, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")


@dataclass(frozen=True)
class SentFile:
    """Bytes as they will be sent."""

    filename: str
    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class CheckedPhoto(SentFile):
    """One usable photo, with its caption and mask where it has them."""

    caption: str | None = None
    mask: SentFile | None = None

    @property
    def ref(self) -> PhotoRef:
        return PhotoRef(
            sha256=self.sha256,
            bytes=len(self.data),
            filename=self.filename[-255:],
            caption=self.caption,
            mask=None if self.mask is None else _mask_ref(self.mask),
        )

    @property
    def class_ref(self) -> ClassImageRef:
        return ClassImageRef(sha256=self.sha256, bytes=len(self.data), filename=self.filename[-255:])


@dataclass
class Collection:
    """What was found: the usable photos, each content once; a problem for every bad file; things to warn of."""

    photos: list[CheckedPhoto] = field(default_factory=list)
    problems: list[FieldProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[SentFile]:
        """All that is to be sent."""
        return [file for photo in self.photos for file in (photo, photo.mask) if file is not None]


def collect(images: Photos, field: str = "images") -> Collection:
    """All photos in a folder, paths, globs, bytes, PIL images, `Photo`s or a mix, read and checked.

    Files of a folder come in the order of their names; those without an image suffix are left out with a warning.
    `field` is what problems call the whole of it.
    """
    collection = Collection()
    items = listed(images)
    photos = photos_in(items, collection.warnings)
    if not photos:
        message, remedy = "There is no photo in what was given.", "Give 3 to 5 photos of the subject."
        collection.problems.append(FieldProblem(field=field, value=shown(items), message=message, remedy=remedy))
    elif len(photos) > limits.MAX_PHOTOS:
        message = f"There are {len(photos)} photos, and {limits.MAX_PHOTOS} are the most."
        remedy = "Choose the best; 3 to 5 are enough."
        collection.problems.append(FieldProblem(field=field, value=shown(items), message=message, remedy=remedy))
    else:
        _check(photos, field, collection)
    return collection


def collect_class_images(images: Photos | None, field: str = "class_images") -> Collection:
    """The class images of the user's own, read and checked as photos are; None is none. They have no captions or masks.

    A class image is trained with the class prompt, so that a text or mask file beside it is none of its.
    """
    collection = Collection()
    if images is None:
        return collection
    items = listed(images)
    photos = photos_in(items, collection.warnings)
    problem = None
    if not photos:
        problem = "There is no picture in what was given.", "Give pictures of the class, or leave class_images out."
    elif len(photos) > limits.MAX_OWN_CLASS_IMAGES:
        problem = (
            f"There are {len(photos)} pictures, and {limits.MAX_OWN_CLASS_IMAGES} are the most.",
            "Choose among them; 100 to 200 are enough.",
        )
    elif any(photo.caption is not None or photo.mask is not None for photo in photos):
        problem = "A class image has no caption or mask of its own.", "Give class_prompt for all of them."
    if problem is not None:
        message, remedy = problem
        collection.problems.append(FieldProblem(field=field, value=shown(items), message=message, remedy=remedy))
    else:
        _check(photos, field, collection, with_companions=False)
    return collection


def _check(photos: Sequence[Photo], field: str, collection: Collection, *, with_companions: bool = True) -> None:
    """Every photo is read and opened once, and lies in the collection, or a problem for each bad file of it."""
    kept: dict[str, tuple[str, CheckedPhoto]] = {}
    for number, photo in enumerate(photos):
        name = str(photo.image) if isinstance(photo.image, Path) else f"{field}.{number}"
        found = _checked(photo, number, name, collection.problems, with_companions)
        if found is None:
            continue
        first_name, first = kept.setdefault(found.sha256, (name, found))
        if first is found:
            collection.photos.append(found)
            continue
        differs = (found.caption, found.mask) != (first.caption, first.mask)
        once = "once, with the first one's caption and mask" if differs else "once"
        collection.warnings.append(f"{name} is the same photo as {first_name}; it is used {once}.")


def _checked(
    photo: Photo, number: int, name: str, problems: list[FieldProblem], with_companions: bool
) -> CheckedPhoto | None:
    """The photo with all that belongs to it; None, and a problem for each bad part, where it cannot be used."""
    before = len(problems)
    data = size = caption = mask = None
    with _blaming(name, problems):
        if isinstance(photo.image, Path) and is_mask(photo.image):
            raise PhotoError("It is the mask of a photo that is not given.", "Give the photo too, or rename the file.")
        data = read(photo.image)
        size = open_photo(data).size
    told = _caption_of(photo) if with_companions else None
    with _blaming(str(told) if isinstance(told, Path) else f"caption of {name}", problems):
        caption = read_caption(told) if isinstance(told, Path) else None if told is None else checked_caption(told)
    drawn = _mask_of(photo) if with_companions else None
    mask_name = str(drawn) if isinstance(drawn, Path) else f"mask of {name}"
    with _blaming(mask_name, problems):
        mask = None if drawn is None else SentFile(Path(mask_name).name, read(drawn))
        if mask is not None and size is not None:
            open_mask(mask.data, size)
    if data is None or len(problems) > before:
        return None
    filename = photo.image.name if isinstance(photo.image, Path) else f"image-{number + 1}"
    return CheckedPhoto(filename, data, caption, mask)


@contextmanager
def _blaming(name: str, problems: list[FieldProblem]) -> Iterator[None]:
    """A PhotoError within the block is a problem of this name, and the block's end."""
    try:
        yield
    except PhotoError as error:
        problems.append(FieldProblem(field=name, value="", message=error.message, remedy=error.remedy))


def _caption_of(photo: Photo) -> object:
    """The caption as given, else the file of it beside the photo, else None."""
    if photo.caption is not None or not isinstance(photo.image, Path):
        return photo.caption
    beside = caption_path(photo.image)
    return beside if beside.is_file() else None


def _mask_of(photo: Photo) -> Any:
    """The mask as given, else the file of it beside the photo, else None. Given paths are Paths."""
    if photo.mask is not None or not isinstance(photo.image, Path):
        return Path(photo.mask).expanduser() if isinstance(photo.mask, str) else photo.mask
    beside = mask_path(photo.image)
    return beside if beside.is_file() else None


def _mask_ref(mask: SentFile) -> MaskRef:
    return MaskRef(sha256=mask.sha256, bytes=len(mask.data), filename=mask.filename[-255:])


def read(source: Source) -> bytes:
    """The bytes to send. Raises PhotoError where there are none to be had."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return _read_file(Path(source).expanduser())
    if hasattr(source, "getexif"):
        return _as_png(source)
    raise PhotoError(f"It is a {type(source).__name__}.", "Give paths, bytes or PIL images.")


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > limits.MAX_PHOTO_BYTES:
            most = limits.MAX_PHOTO_BYTES // 2**20
            raise PhotoError(f"The file has {size / 2**20:.0f} MiB.", f"Send at most {most} MiB.")
        return path.read_bytes()
    except FileNotFoundError:
        raise PhotoError("There is no such file.", "Check the path.") from None
    except OSError as error:
        raise PhotoError(f"It cannot be read ({error.strerror}).", "Give a file that you may read.") from None


def _as_png(image: Image) -> bytes:
    """A PIL image upright, in a mode that PNG and the service know."""
    from PIL import ImageOps

    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        plain = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
        plain.save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise PhotoError(f"The image is damaged ({error}).", "Give another one.") from None
    return buffer.getvalue()
