"""Where the photos lie: folders, globs, paths, bytes and PIL images, as one `Photo` for each picture."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from booth.companions import CAPTION_SUFFIX, caption_path, is_mask, mask_path
from booth.subjects import Photo, Photos, Source

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".mpo"}
)


def listed(images: Photos) -> list[Any]:
    """What was given, one by one: a lone photo is a list of one. Pillow stays unloaded: a method tells its images."""
    if isinstance(images, str | Path | bytes) or hasattr(images, "getexif") or not isinstance(images, Iterable):
        return [images]
    return list(images)


def photos_in(items: list[Any], warnings: list[str]) -> list[Photo]:
    """Every picture that was meant, not yet read; paths are Paths. What a folder holds besides is warned of."""
    return _without_companions([photo for item in items for photo in _expanded(item, warnings)])


def shown(items: list[Any]) -> str:
    """The paths among what was given, for a message."""
    return ", ".join(str(item) for item in items[:5] if isinstance(item, str | Path))


def _expanded(item: Source | Photo, warnings: list[str]) -> list[Photo]:
    """The files behind a folder or a glob; anything else as it is. Paths come out as Paths."""
    if isinstance(item, Photo):
        return [replace(item, image=Path(item.image).expanduser()) if isinstance(item.image, str) else item]
    if not isinstance(item, str | Path):
        return [Photo(item)]
    path = Path(item).expanduser()
    if path.is_dir():
        return [Photo(file) for file in _image_files(path, warnings)]
    if not path.exists() and glob.has_magic(str(path)):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        return [Photo(match) for match in sorted(matches) if match.is_file()]
    return [Photo(path)]


def _without_companions(photos: list[Photo]) -> list[Photo]:
    """Less the captions and masks that a shell's photos/* gives along with their photos."""
    paths = [photo.image for photo in photos if isinstance(photo.image, Path)]
    others = {
        companion
        for path in paths
        if not is_mask(path) and path.suffix != CAPTION_SUFFIX
        for companion in (caption_path(path), mask_path(path))
    }
    return [photo for photo in photos if not (isinstance(photo.image, Path) and photo.image in others)]


def _image_files(folder: Path, warnings: list[str]) -> list[Path]:
    """The photos of a folder. Other files are warned of, but for captions and masks of these photos."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return [folder]  # reading it says why
    pictures = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES]
    photos = [picture for picture in pictures if not is_mask(picture)]
    companions = {companion for photo in photos for companion in (caption_path(photo), mask_path(photo))}
    masks = [picture for picture in pictures if is_mask(picture) and picture not in companions]
    others = [entry for entry in entries if entry not in pictures and entry not in companions]
    if others:
        warnings.append(f"{folder}: left out, because their names are not those of photos: {_some(others)}")
    if masks:
        warnings.append(f"{folder}: left out, because a mask's name is photo.mask.png for photo.jpg: {_some(masks)}")
    return photos


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:10]) + (" ..." if len(paths) > 10 else "")
