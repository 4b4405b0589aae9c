"""Blocks of class images in the object store: their record written last, found without listing, checked by hash."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from booth.contract.attempts import StoredFile
from booth.contract.base import Record
from booth_service.errors import ObjectMissing
from booth_service.prior.class_set import ClassBlock, ClassManifest, ClassPicture
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

THREADS = 8

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Place:
    """Where a set lies: its prefix in a store. `keys.class_set` gives the prefix."""

    store: ObjectStore
    prefix: str


def read_manifest(place: Place, count: int) -> ClassManifest | None:
    """The manifest of the first `count` pictures; None where there is none that can be read."""
    return _read(place.store, keys.class_manifest(place.prefix, count), ClassManifest)


def read_blocks(place: Place, firsts: Sequence[int]) -> dict[int, ClassBlock | None]:
    """The records of the blocks that begin with these pictures; None where there is none that can be read."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda first: _read(place.store, keys.class_block(place.prefix, first), ClassBlock), firsts)
        return dict(zip(firsts, found, strict=True))


def damaged_files(store: ObjectStore, blocks: Sequence[ClassBlock], *, with_pictures: bool) -> dict[int, list[str]]:
    """Keys that are missing or hold other bytes than recorded, by the block's first picture; whole blocks are left out.

    Moments are always read. Pictures only where asked: they are many times as large, and most jobs never open one.
    """
    files = [(block.first, block.moments) for block in blocks]
    if with_pictures:
        files += [(block.first, picture) for block in blocks for picture in block.pictures]
    with ThreadPoolExecutor(THREADS) as pool:
        whole = pool.map(lambda each: _is_whole(store, each[1]), files)
    damaged: dict[int, list[str]] = {}
    for (first, file), is_whole in zip(files, whole, strict=True):
        if not is_whole:
            damaged.setdefault(first, []).append(file.key)
    return damaged


def store_pictures(place: Place, first: int, images: Sequence[Image.Image]) -> list[ClassPicture]:
    """The pictures as PNGs under their own hashes."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda each: _store_picture(place, *each), enumerate(images, start=first)))


def store_moments(place: Place, first: int, upright: list[Tensor], mirrored: list[Tensor]) -> StoredFile:
    """The moments of a block's pictures, each (2, C, h, w), as one safetensors file under its own hash."""
    body = save({"upright": torch.stack(upright), "mirrored": torch.stack(mirrored)})
    sha256 = hashlib.sha256(body).hexdigest()
    key = keys.class_moments(place.prefix, first, sha256)
    place.store.put(key, body)
    return StoredFile(path=f"moments-{first:06d}.safetensors", key=key, bytes=len(body), sha256=sha256)


def store_record(place: Place, block: ClassBlock, *, replace: bool) -> ClassBlock:
    """The block exists. Returns the record that stands: another actor's, where that one came first.

    `replace` puts the record in place of a damaged block's; only the lease's holder may.
    """
    key = keys.class_block(place.prefix, block.first)
    body = block.model_dump_json().encode()
    if not replace and place.store.put_once(key, body):
        return block
    standing = None if replace else _read(place.store, key, ClassBlock)
    if standing is None:
        place.store.put(key, body, "application/json")
    return standing or block


def store_manifest(place: Place, manifest: ClassManifest) -> None:
    """The set's manifest names these blocks; it is put once, and again only where a damaged block had to change."""
    key = keys.class_manifest(place.prefix, manifest.count)
    body = manifest.model_dump_json().encode()
    if not place.store.put_once(key, body) and read_manifest(place, manifest.count) != manifest:
        place.store.put(key, body, "application/json")


def _store_picture(place: Place, index: int, image: Image.Image) -> ClassPicture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    body = buffer.getvalue()
    sha256 = hashlib.sha256(body).hexdigest()
    key = keys.class_item(place.prefix, index, sha256)
    place.store.put(key, body, "image/png")
    return ClassPicture(
        path=f"{index:06d}.png", key=key, bytes=len(body), sha256=sha256, height=image.height, width=image.width
    )


def _read(store: ObjectStore, key: str, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(store.get(key))
    except (ObjectMissing, ValidationError):
        return None


def _is_whole(store: ObjectStore, file: StoredFile) -> bool:
    try:
        body = store.get(file.key)
    except ObjectMissing:
        return False
    return hashlib.sha256(body).hexdigest() == file.sha256
