"""What scores are computed from: vectors, labels and distances of pictures, made block by block and kept as bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from booth_service.errors import ScoreError
from booth_service.evaluation.encoders import Suite
from booth_service.evaluation.metrics import pairs_of_prompts

Pair = tuple[int, int]


@dataclass(frozen=True)
class Vectors:
    """N pictures as a suite sees them, in their order.

    subject (N, D) and clip (N, D') float32 unit vectors; `labels` N for each head; `distances` LPIPS by pairs (i, j),
    i < j, of the pictures of one case that were measured; `to_photos` (N, M) float64 LPIPS to each photo of the
    subject, (N, 0) where they were not measured.
    """

    subject: Tensor
    clip: Tensor
    labels: dict[str, list[str]] = field(default_factory=dict)
    distances: dict[Pair, float] = field(default_factory=dict)
    to_photos: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))

    def __post_init__(self) -> None:
        if self.to_photos.numel() == 0:
            object.__setattr__(self, "to_photos", torch.empty(len(self), 0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.subject)

    def to_bytes(self) -> bytes:
        """As safetensors, the same bytes for the same content."""
        pairs = sorted(self.distances)
        told = json.dumps(self.labels, sort_keys=True).encode()
        tensors = {
            "subject": self.subject.contiguous(),
            "clip": self.clip.contiguous(),
            "labels": torch.frombuffer(bytearray(told), dtype=torch.uint8),
            "pairs": torch.tensor(pairs, dtype=torch.int64).reshape(len(pairs), 2),
            "distances": torch.tensor([self.distances[pair] for pair in pairs], dtype=torch.float64),
            "to_photos": self.to_photos.contiguous(),
        }
        data: bytes = save(tensors)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Vectors":
        """What `to_bytes` gave. Raises ScoreError for anything else."""
        try:
            tensors = load(data)
            pairs = [(int(i), int(j)) for i, j in tensors["pairs"]]
            return cls(
                subject=tensors["subject"],
                clip=tensors["clip"],
                labels=json.loads(bytes(tensors["labels"].tolist())),
                distances=dict(zip(pairs, tensors["distances"].tolist(), strict=True)),
                to_photos=tensors["to_photos"],
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ScoreError(
                f"the stored vectors are damaged ({error}); delete them and encode the block again"
            ) from error


def vectors_of(
    suite: Suite,
    images: Sequence[Image.Image],
    cases: Sequence[object] | None = None,
    photos: Sequence[Image.Image] = (),
) -> Vectors:
    """The pictures as the suite sees them. `cases` tells which pictures are of one prompt: their pairs are measured;
    and so is the distance of each picture to each of `photos`.

    Raises ScoreError, naming the picture, where one gives no vector.
    """
    if cases is not None and len(cases) != len(images):
        raise ScoreError(f"{len(images)} pictures and {len(cases)} cases; give the case of each picture")
    pairs = [] if cases is None else pairs_of_prompts(cases)
    distances = suite.perceptual_distances([images[i] for i, _ in pairs], [images[j] for _, j in pairs])
    return Vectors(
        subject=suite.subject_vectors(images),
        clip=suite.clip_image_vectors(images),
        labels=suite.attributes(images),
        distances=dict(zip(pairs, distances.tolist(), strict=True)),
        to_photos=_to_photos(suite, images, photos),
    )


def _to_photos(suite: Suite, images: Sequence[Image.Image], photos: Sequence[Image.Image]) -> Tensor:
    left = [image for image in images for _ in photos]
    found = suite.perceptual_distances(left, list(photos) * len(images))
    return found.double().reshape(len(images), len(photos))


def joined(parts: Sequence[Vectors]) -> Vectors:
    """The blocks one after the other. Pairs across blocks were not measured: keep a case's pictures in one block."""
    if not parts:
        raise ScoreError("there are no vectors to join; encode at least one block")
    if len({(part.subject.shape[1], part.clip.shape[1], *sorted(part.labels)) for part in parts}) > 1:
        raise ScoreError("the blocks come from different encoders; encode all of them with the same suite")
    distances: dict[Pair, float] = {}
    first = 0
    for part in parts:
        distances |= {(first + i, first + j): value for (i, j), value in part.distances.items()}
        first += len(part)
    return Vectors(
        subject=torch.cat([part.subject for part in parts]),
        clip=torch.cat([part.clip for part in parts]),
        labels={head: [label for part in parts for label in part.labels[head]] for head in parts[0].labels},
        distances=distances,
        to_photos=torch.cat([part.to_photos for part in parts]),
    )
