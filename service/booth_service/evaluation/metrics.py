"""The paper's metrics as pure functions of unit vectors (DreamBooth, Ruiz et al., CVPR 2023, section 4).

N = generated pictures, M = photos of the subject, D = width of a vector. Vectors are float, one a row, of length 1;
sums are taken in float64. What is no such matrix raises ScoreError, which names the row and what to do.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from booth_service.errors import ScoreError

COPY_SHARE = 0.5  # of the smallest LPIPS between two photos: a picture below it is a copy of one
TOLERANCE = 1e-3  # of a unit vector's length; half-precision vectors keep to it

DEFINITIONS = {
    "dino": "Mean cosine of the subject encoder's vectors over all pairs of a generated picture and a photo of the "
    "subject. Higher is closer to the subject.",
    "clip_i": "The same as dino, with CLIP's image vectors.",
    "clip_t": "Mean cosine of CLIP's vectors of each generated picture and of its own prompt. Higher follows the "
    "prompt better. The paper does not say which words the prompt keeps; the convention is named beside the figure.",
    "pres": "Mean cosine of the subject encoder's vectors over all pairs of a picture drawn from the class prompt "
    "(without identifier) and a photo of the subject. Lower is better: above the frozen base's own figure the class "
    "has turned into the subject.",
    "div": "Mean LPIPS over all pairs of different pictures of one subject and prompt, then over the prompts. Higher "
    "is more varied.",
    "ceiling": "Mean cosine over all pairs of two different photos of the subject; a photo is never paired with "
    "itself. What a perfect model would come to.",
    "attributes": "The share of pictures in which the attribute head sees what the prompt asks for, over the pictures "
    "whose prompt asks for something that the head knows.",
    "memorised": "Pictures whose subject vector is nearer to one photo than any two photos are to each other, or whose "
    "LPIPS to one photo is below half of the smallest between two photos: they are likely to repeat that photo.",
    "averaging": "First over the pictures of a subject, then over the subjects, each with the same weight.",
    "interval": "Percentile bootstrap over the subjects, 95 %; differences are paired by subject.",
}


def unit(vectors: Tensor, what: str) -> Tensor:
    """Each row divided by its length. Raises ScoreError for a row that is zero or not finite."""
    lengths = _matrix(vectors, what).double().norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        row = int((lengths.flatten() == 0).nonzero()[0])
        raise ScoreError(f"{what}: row {row} is all zeros, so it has no direction; check that picture and the encoder")
    rows: Tensor = vectors.double() / lengths
    return rows.to(torch.float32)


def mean_pairwise(generated: Tensor, real: Tensor, what: str = "generated pictures") -> float:
    """Mean cosine over all N x M pairs, in [-1, 1]: DINO, CLIP-I and PRES, by what the vectors are of."""
    return float(per_picture(generated, real, what).mean())


def per_picture(generated: Tensor, real: Tensor, what: str = "generated pictures") -> Tensor:
    """Each picture's mean cosine to all photos: (N,) float64."""
    return _cosines(generated, real, what, "photos of the subject").mean(dim=1)


def ceiling(real: Tensor) -> float:
    """Mean cosine over the pairs of two different photos. Raises ScoreError where there are fewer than two."""
    return float(_between_photos(real).mean())


def clip_t(pictures: Tensor, prompts: Tensor) -> float:
    """Mean cosine of each picture and its own prompt."""
    return float(clip_t_per_picture(pictures, prompts).mean())


def clip_t_per_picture(pictures: Tensor, prompts: Tensor) -> Tensor:
    """(N,) float64: the cosine of row i of pictures (N, D) and row i of prompts (N, D)."""
    a, b = _checked(pictures, "pictures (CLIP)"), _checked(prompts, "prompts (CLIP)")
    _same_width(a, b, "pictures (CLIP)", "prompts (CLIP)")
    if len(a) != len(b):
        raise ScoreError(f"{len(a)} pictures and {len(b)} prompts; give the prompt of each picture once for it")
    return (a * b).sum(dim=1)


def pairs_of_prompts(prompts: Sequence[object]) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, of pictures of one prompt, prompt by prompt; `prompts` names that of each picture."""
    of_prompt: dict[object, list[int]] = {}
    for picture, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(picture)
    return [pair for pictures in of_prompt.values() for pair in combinations(pictures, 2)]


def div(distances: Mapping[tuple[int, int], float], prompts: Sequence[object]) -> float | None:
    """Mean over the prompts of the mean LPIPS over all pairs of their pictures; None where no prompt has two.

    Raises ScoreError, naming the pictures, for a pair that has no distance or one that is not finite.
    """
    of_prompt: dict[object, list[float]] = {}
    for i, j in pairs_of_prompts(prompts):
        distance = distances.get((i, j), math.nan)
        if not math.isfinite(distance):
            said = f"is {distance}" if (i, j) in distances else "was not measured"
            raise ScoreError(
                f"LPIPS of pictures {i} and {j} {said}; measure all pairs of a prompt's pictures, from finite pixels"
            )
        of_prompt.setdefault(prompts[i], []).append(distance)
    if not of_prompt:
        return None
    return math.fsum(math.fsum(each) / len(each) for each in of_prompt.values()) / len(of_prompt)


def accuracy(seen: Sequence[str], asked: Sequence[str | None]) -> float | None:
    """The share of pictures in which what is seen was asked for; None where nothing was asked. None asks nothing."""
    if len(seen) != len(asked):
        raise ScoreError(f"{len(seen)} labels for {len(asked)} pictures; give one label for each")
    judged = [a == b for a, b in zip(seen, asked, strict=True) if b is not None]
    return sum(judged) / len(judged) if judged else None


def nearest_photos(generated: Tensor, real: Tensor) -> list[tuple[int, float]]:
    """For each picture the photo that it is most like, and their cosine."""
    best = _cosines(generated, real, "generated pictures", "photos of the subject").max(dim=1)
    return [(int(photo), float(cosine)) for photo, cosine in zip(best.indices, best.values, strict=True)]


def memorised(generated: Tensor, real: Tensor) -> list[int]:
    """The pictures that are nearer to one photo than any two photos are to each other, in order."""
    closest = float(_between_photos(real).max())
    return [row for row, (_, cosine) in enumerate(nearest_photos(generated, real)) if cosine > closest]


def repeated(to_photos: Tensor, between_photos: Sequence[float]) -> dict[int, int]:
    """Picture -> the photo that it repeats, scene and all: whose LPIPS to it is below half of the smallest between two
    photos. `to_photos` (N, M) are those of each picture to each photo.

    What makes two pictures one and the same for a subject encoder need not be their scene, so that `memorised` alone
    would miss a copy. Nothing is one without two different photos to compare with.
    """
    if to_photos.numel() == 0 or not between_photos:
        return {}
    nearest = to_photos.min(dim=1)
    limit = min(between_photos) * COPY_SHARE
    rows = [row for row, distance in enumerate(nearest.values.tolist()) if distance < limit]
    return {row: int(nearest.indices[row]) for row in rows}


def _between_photos(real: Tensor) -> Tensor:
    """Cosines of the M (M - 1) / 2 pairs of different photos, float64."""
    photos = _checked(real, "photos of the subject")
    if len(photos) < 2:
        raise ScoreError("photos of the subject: there is only one, and a ceiling needs two or more; give another")
    rows, columns = torch.triu_indices(len(photos), len(photos), offset=1)
    return (photos @ photos.T)[rows, columns]


def _cosines(a: Tensor, b: Tensor, what_a: str, what_b: str) -> Tensor:
    """(rows of a, rows of b) float64."""
    left, right = _checked(a, what_a), _checked(b, what_b)
    _same_width(left, right, what_a, what_b)
    return left @ right.T


def _same_width(a: Tensor, b: Tensor, what_a: str, what_b: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise ScoreError(
            f"{what_a} have vectors of width {a.shape[1]}, {what_b} of {b.shape[1]}: they come from different "
            "encoders; encode both with the same suite"
        )


def _checked(vectors: Tensor, what: str) -> Tensor:
    """The vectors in float64. Raises ScoreError unless every row is a unit vector."""
    rows = _matrix(vectors, what).double()
    lengths = rows.norm(dim=1)
    odd = ((lengths - 1).abs() > TOLERANCE).nonzero().flatten()
    if len(odd):
        row = int(odd[0])
        raise ScoreError(f"{what}: row {row} has length {float(lengths[row]):.4g}, not 1; make it so with metrics.unit")
    return rows


def _matrix(vectors: Tensor, what: str) -> Tensor:
    """As given. Raises ScoreError unless it is (rows, D) of finite numbers with at least one row."""
    if vectors.dim() != 2:
        raise ScoreError(f"{what}: the shape is {tuple(vectors.shape)}; give one vector a row")
    if not vectors.numel():
        raise ScoreError(f"{what}: there is none; a score needs at least one")
    finite = torch.isfinite(vectors).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ScoreError(
            f"{what}: row {row} holds values that are not finite; look at that picture, and check the encoder's "
            "weights and the model's (a NaN in either does this)"
        )
    return vectors
