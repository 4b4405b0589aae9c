"""The subject's photos: found, read and checked here, before anything is sent."""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from booth.contract import limits
from booth.contract.jobs import PhotoRef
from booth.contract.photos import PhotoError, open_photo
from booth.contract.problems import FieldProblem

if TYPE_CHECKING:
    from PIL.Image import Image

Source: TypeAlias = "Path | bytes | Image"
Photos: TypeAlias = "str | Source | Iterable[str | Source]"

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".mpo"}
)


@dataclass(frozen=True)
class Photo:
    """One usable photo, as it will be sent."""

    filename: str
    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def ref(self) -> PhotoRef:
        return PhotoRef(sha256=self.sha256, bytes=len(self.data), filename=self.filename[-255:])


@dataclass
class Collection:
    """What was found: the usable photos, each content once; a problem for every bad file; things to warn of."""

    photos: list[Photo] = field(default_factory=list)
    problems: list[FieldProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect(images: Photos) -> Collection:
    """All photos in a folder, paths, globs, bytes, PIL images or a mix, read and checked.

    Files of a folder come in the order of their names; those without an image suffix are left out with a warning.
    """
    collection = Collection()
    items = _items(images)
    sources = [source for item in items for source in _expanded(item, collection.warnings)]
    if not sources:
        message, remedy = "There is no photo in what was given.", "Give 3 to 5 photos of the subject."
        collection.problems.append(FieldProblem(field="images", value=_shown(items), message=message, remedy=remedy))
    elif len(sources) > limits.MAX_PHOTOS:
        message = f"There are {len(sources)} photos, and {limits.MAX_PHOTOS} are the most."
        remedy = "Choose the best; 3 to 5 are enough."
        collection.problems.append(FieldProblem(field="images", value=_shown(items), message=message, remedy=remedy))
    else:
        _check(sources, collection)
    return collection


def _check(sources: Sequence[Source], collection: Collection) -> None:
    """Every source is read and opened once, and lies in the collection as a photo or as a problem."""
    names: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        name = str(source) if isinstance(source, Path) else f"image {number}"
        try:
            photo = Photo(source.name if isinstance(source, Path) else f"image-{number}", _read(source))
            open_photo(photo.data)
        except PhotoError as error:
            problem = FieldProblem(field=name, value="", message=error.message, remedy=error.remedy)
            collection.problems.append(problem)
            continue
        if photo.sha256 in names:
            collection.warnings.append(f"{name} is the same photo as {names[photo.sha256]}; it is used once.")
        else:
            names[photo.sha256] = name
            collection.photos.append(photo)


def _items(images: Photos) -> list[Any]:
    """A lone photo is a list of one. Pillow stays unloaded: its images are told by a method."""
    if isinstance(images, str | Path | bytes) or hasattr(images, "getexif") or not isinstance(images, Iterable):
        return [images]
    return list(images)


def _expanded(item: str | Source, warnings: list[str]) -> Sequence[Source]:
    """The files behind a folder or a glob; anything else as it is."""
    if not isinstance(item, str | Path):
        return [item]
    path = Path(item).expanduser()
    if path.is_dir():
        return _image_files(path, warnings)
    if not path.exists() and glob.has_magic(str(path)):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        return sorted(match for match in matches if match.is_file())
    return [path]


def _image_files(folder: Path, warnings: list[str]) -> Sequence[Source]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return [folder]  # reading it says why
    images = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES]
    others = [entry.name for entry in entries if entry not in images]
    if others:
        shown = ", ".join(others[:10]) + (" ..." if len(others) > 10 else "")
        warnings.append(f"{folder}: left out, because their names are not those of photos: {shown}")
    return images


def _read(source: Source) -> bytes:
    """The bytes to send; PhotoError where there are none to be had."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        return _read_file(source)
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
        plain = upright if upright.mode in ("RGB", "RGBA", "L", "LA", "P") else upright.convert("RGB")
        plain.save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise PhotoError(f"The image is damaged ({error}).", "Give another one.") from None
    return buffer.getvalue()


def _shown(items: list[Any]) -> str:
    """The paths among what was given."""
    return ", ".join(str(item) for item in items[:5] if isinstance(item, str | Path))
