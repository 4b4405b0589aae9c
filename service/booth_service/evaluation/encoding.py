"""Stored pictures to stored vectors: what an actor of a pool does with a suite of encoders."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image

from booth.contract.attempts import StoredFile
from booth.contract.bulk import DrawnPicture
from booth.contract.jobs import PromptCase
from booth_service.evaluation.encoders import BATCH, load_suite
from booth_service.evaluation.score import Asked, asked_of, photo_vectors
from booth_service.evaluation.thumbnails import thumbnail
from booth_service.evaluation.vectors import Vectors, vectors_of
from booth_service.storage.base_model import content_sha256, materialize
from booth_service.storage.encoded_blocks import EncodedBlock, Place, Thumbnails
from booth_service.storage.s3 import ObjectStore

READ_THREADS = 8


@dataclass(frozen=True)
class EncodingWork:
    """All that whoever encodes needs. Small and picklable; the suite comes from the object store.

    `arms` are the prefixes of the arms by number, `cases` what each draws; `thumbnail_px` is the longer side of the
    small copies.
    """

    store: ObjectStore
    suite_files: tuple[StoredFile, ...]
    scratch_dir: str | None
    use_gpu: bool
    arms: tuple[str, ...]
    cases: tuple[tuple[PromptCase, ...], ...]
    photos: tuple[StoredFile, ...]
    thumbnail_px: int

    def place(self, arm: int) -> Place:
        """Where what is made of an arm's pictures lies."""
        return Place(self.store, self.arms[arm], content_sha256(self.suite_files)[:16])


@dataclass(frozen=True)
class EncodingTask:
    """Pictures of an arm from number `first` on. `cases` has the case of each: pairs of one case are compared; None of
    pictures of the class."""

    arm: int
    first: int
    pictures: tuple[DrawnPicture, ...]
    cases: tuple[int, ...] | None

    @property
    def picture_sha256(self) -> list[str]:
        """The content that the block is made of."""
        return [picture.sha256 for picture in self.pictures]


@dataclass(frozen=True)
class References:
    """What pictures are compared with: the photos as the suite sees them, and what each arm's cases ask for."""

    photos: Vectors
    asked: tuple[Asked, ...]
    described: dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """What came of a task: the block that is stored, of which arm; or, of the task None, the references."""

    arm: int = 0
    block: EncodedBlock | None = None
    references: References | None = None


class Encoder:
    """Holds a suite on this actor's device. Raises EncoderError where it cannot be loaded."""

    def __init__(self, work: EncodingWork) -> None:
        if not work.use_gpu:
            torch.set_num_threads(1)
        self.work = work
        folder = materialize(work.store, work.suite_files, work.scratch_dir)
        self.suite = load_suite(folder, "cuda" if work.use_gpu else "cpu")

    def encode(self, task: EncodingTask | None) -> Encoded:
        """The task's block, stored; of None the references. Raises StorageError, ScoreError naming the picture."""
        if task is None:
            return Encoded(references=self._references())
        images = self._read(task.pictures)
        vectors = vectors_of(self.suite, images, task.cases, self._photos)
        small = {
            picture.key: thumbnail(image, self.work.thumbnail_px)
            for picture, image in zip(task.pictures, images, strict=True)
        }
        place = self.work.place(task.arm)
        block = place.put(
            task.first, task.picture_sha256, vectors.to_bytes(), Thumbnails.model_construct(pictures=small)
        )
        return Encoded(task.arm, block)

    def _references(self) -> References:
        photos = photo_vectors(self.suite, self._photos)
        asked = tuple(asked_of(self.suite, cases) for cases in self.work.cases)
        return References(photos, asked, self.suite.describe())

    @cached_property
    def _photos(self) -> list[Image.Image]:
        return self._read(self.work.photos)

    def _read(self, files: Sequence[DrawnPicture] | Sequence[StoredFile]) -> list[Image.Image]:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            bodies = pool.map(lambda file: self.work.store.get(file.key, file.sha256), files)
            return [Image.open(io.BytesIO(body)) for body in bodies]


def encoder(work: EncodingWork) -> Callable[[EncodingTask | None], Encoded]:
    """What an actor of a pool does with its tasks."""
    return Encoder(work).encode


def tasks_of(
    arm: int, pictures: Sequence[DrawnPicture], cases: int, num_images: int, batch: int = BATCH
) -> list[EncodingTask]:
    """An arm's pictures in blocks that keep a case's together: `num_images` of each case, then those of the class."""
    of_cases, at_once = cases * num_images, max(1, batch // num_images) * num_images
    starts = [*range(0, of_cases, at_once), *range(of_cases, len(pictures), batch)]
    ends = [*starts[1:], len(pictures)]
    return [
        EncodingTask(
            arm=arm,
            first=first,
            pictures=tuple(pictures[first:end]),
            cases=None if first >= of_cases else tuple(number // num_images for number in range(first, end)),
        )
        for first, end in zip(starts, ends, strict=True)
    ]
