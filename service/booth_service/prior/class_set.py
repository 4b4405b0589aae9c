"""A class-image set: its content address, its blocks of pictures, and the manifest that says it is complete."""

import hashlib
import json
from typing import Any

from booth.contract.attempts import StoredFile
from booth.contract.base import Record
from booth.contract.models import ClassScheduler
from booth_service.diffusion.noise import hash64


class ClassPicture(StoredFile):
    """One class image as stored; height and width in pixels."""

    height: int
    width: int


class ClassSetSpec(Record):
    """All that a drawn class image depends on. Equal specs give equal pictures, so their address is shared by jobs."""

    base_sha256: str
    class_prompt: str
    negative_prompt: str
    scheduler: ClassScheduler
    num_inference_steps: int
    guidance_scale: float
    resolution: int
    dtype: str
    block_size: int
    threads_per_actor: int
    seed: int

    @property
    def address(self) -> str:
        """The set's content address, 32 hex digits."""
        return _address({"kind": "drawn", **self.model_dump(mode="json")})

    def item_seed(self, index: int) -> int:
        """The seed of picture `index`; neighbours are unrelated."""
        return hash64(self.seed, index) >> 1

    def block(self, first: int) -> range:
        """The indices of a block: always whole, so that tensor shapes, and with them bits, never depend on a job."""
        return range(first, first + self.block_size)


class OwnSetSpec(Record):
    """A user's own class images, in order. What is made of them are their moments, by this base's VAE, squared."""

    base_sha256: str
    resolution: int
    block_size: int
    pictures: list[ClassPicture]

    @property
    def address(self) -> str:
        """The set's content address, 32 hex digits."""
        content = self.model_dump(mode="json", exclude={"pictures"})
        return _address({"kind": "own", **content, "sha256": [picture.sha256 for picture in self.pictures]})

    def block(self, first: int) -> range:
        """The indices of a block; the last one is as short as the pictures run out."""
        return range(first, min(first + self.block_size, len(self.pictures)))


Spec = ClassSetSpec | OwnSetSpec


class ClassBlock(Record):
    """The record of a block of consecutive pictures, written last: a block exists where its record does.

    `moments` is a safetensors file of "upright" and "mirrored", each (pictures, 2, C, h, w) fp32: mean and standard
    deviation of each picture's posterior.
    """

    first: int
    pictures: list[ClassPicture]
    moments: StoredFile

    @property
    def name(self) -> str:
        """What people call it."""
        return f"class images {self.first} to {self.first + len(self.pictures) - 1}"


class ClassManifest(Record):
    """The first `count` pictures of a set, complete. The last block may hold more than are counted."""

    address: str
    count: int
    blocks: list[ClassBlock]

    @property
    def pictures(self) -> list[ClassPicture]:
        """The pictures that count, in order."""
        return [picture for block in self.blocks for picture in block.pictures][: self.count]


def _address(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
