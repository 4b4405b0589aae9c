"""From pictures, or from their vectors alone, to a Score: the paper's figures for one subject, with what warns of them.

Within a subject every picture counts the same; averages over subjects are made of scores (evaluation.intervals).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from booth.contract.jobs import PromptCase
from booth.contract.scores import Score, ScoredPicture
from booth_service.errors import ScoreError
from booth_service.evaluation import metrics
from booth_service.evaluation.encoders import Suite
from booth_service.evaluation.vectors import Vectors, vectors_of

CONTEXT_HEAD = "context"  # the attribute head, where a suite has it, that says where a picture is set
CLIP_TEXTS = {
    "noun": "CLIP-T compares with the prompt in which the class noun stands for the subject",
    "identifier": "CLIP-T compares with the prompt as it is drawn, the identifier in it",
    "dropped": "CLIP-T compares with the prompt without the subject (Textual Inversion's own evaluation)",
}
"""What each convention of PromptCase.clip_text means, for a report."""


@dataclass(frozen=True)
class Asked:
    """What the cases ask for, as a suite reads it: texts (cases, D) unit vectors; by head a label for each case."""

    texts: Tensor
    labels: dict[str, list[str | None]]


@dataclass(frozen=True)
class Drawn:
    """Pictures of one set of weights: their records (case, seed, where they are stored) and their vectors, in order."""

    records: Sequence[ScoredPicture]
    vectors: Vectors


def asked_of(suite: Suite, cases: Sequence[PromptCase]) -> Asked:
    """What the cases ask for. Raises ScoreError where there is none."""
    heads = suite.spec.attributes.heads if suite.spec.attributes else {}
    labels = {head: [asked_label(suite.phrases(head), case.text) for case in cases] for head in heads}
    return Asked(suite.clip_text_vectors([case.clip_text for case in cases]), labels)


def asked_label(phrases: dict[str, str], text: str) -> str | None:
    """The label of the longest phrase that stands in the text as whole words; None where none does."""
    there = [phrase for phrase in phrases if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    return phrases[max(there, key=len)] if there else None


def score(
    suite: Suite,
    *,
    step: int,
    cases: Sequence[PromptCase],
    drawings: Sequence[tuple[ScoredPicture, Image.Image]],
    photos: Sequence[Image.Image],
    class_drawings: Sequence[tuple[ScoredPicture, Image.Image]] = (),
) -> Score:
    """The score of pictures drawn of the cases, beside the subject's photos and pictures of its class."""

    def seen(pairs: Sequence[tuple[ScoredPicture, Image.Image]], with_pairs: bool) -> Drawn:
        records, images = [record for record, _ in pairs], [image for _, image in pairs]
        if not with_pairs:
            return Drawn(records, vectors_of(suite, images))
        return Drawn(records, vectors_of(suite, images, [record.case for record in records], photos))

    return score_of(
        step=step,
        suite=suite.spec.name,
        cases=cases,
        asked=asked_of(suite, cases),
        drawn=seen(drawings, with_pairs=True),
        photos=photo_vectors(suite, photos),
        of_class=seen(class_drawings, with_pairs=False) if class_drawings else None,
    )


def photo_vectors(suite: Suite, photos: Sequence[Image.Image]) -> Vectors:
    """The photos as the suite sees them, every two of them compared."""
    return vectors_of(suite, photos, [0] * len(photos))


def score_of(
    *,
    step: int,
    suite: str,
    cases: Sequence[PromptCase],
    asked: Asked,
    drawn: Drawn,
    photos: Vectors,
    of_class: Drawn | None = None,
) -> Score:
    """The score from vectors alone: pure. Raises ScoreError, naming the row, for vectors that no figure can be made of.

    `drawn.vectors` hold the distances of all pairs of a case's pictures, and to the photos, and `photos` those among
    themselves, where they were measured; without `of_class` there is no PRES. With a single photo there is no ceiling,
    and nothing says what is memorised.
    """
    numbers = _case_numbers(drawn, cases)
    seen, real = drawn.vectors, photos
    dino = metrics.per_picture(seen.subject, real.subject)
    clip_i = metrics.per_picture(seen.clip, real.clip)
    clip_t = metrics.clip_t_per_picture(seen.clip, asked.texts[numbers])
    has_ceiling = len(real) > 1
    ceiling_dino = metrics.ceiling(real.subject) if has_ceiling else None
    nearest = metrics.nearest_photos(seen.subject, real.subject)
    # the frozen base has not seen the photos: what is like one of them there is chance
    memorised = metrics.memorised(seen.subject, real.subject) if has_ceiling and step else []
    repeated = metrics.repeated(seen.to_photos, list(real.distances.values())) if step else {}
    unseen = [row for row, number in enumerate(numbers) if cases[number].is_unseen]
    pictures = [
        record.model_copy(
            update={
                "dino": float(dino[row]),
                "clip_i": float(clip_i[row]),
                "clip_t": float(clip_t[row]),
                "nearest_photo": nearest[row][0],
                "nearest_dino": nearest[row][1],
                "attributes": {head: labels[row] for head, labels in seen.labels.items()},
            }
        )
        for row, record in enumerate(drawn.records)
    ]
    return Score(
        step=step,
        suite=suite,
        dino=float(dino.mean()),
        clip_i=float(clip_i.mean()),
        clip_t=float(clip_t.mean()),
        pres=of_class and metrics.mean_pairwise(of_class.vectors.subject, real.subject, "pictures of the class"),
        div=metrics.div(seen.distances, numbers),
        unseen_dino=float(dino[unseen].mean()) if unseen else None,
        ceiling_dino=ceiling_dino,
        ceiling_clip_i=metrics.ceiling(real.clip) if has_ceiling else None,
        accuracies=_accuracies(seen, asked, numbers),
        memorised=memorised,
        repeated=sorted(repeated),
        warnings=warnings_of(cases, pictures, ceiling_dino, memorised, repeated, asked, photos) if step else [],
        cases=list(cases),
        pictures=pictures,
        class_pictures=_of_class(of_class, real),
    )


def warnings_of(
    cases: Sequence[PromptCase],
    pictures: Sequence[ScoredPicture],
    ceiling_dino: float | None,
    memorised: Sequence[int],
    repeated: Mapping[int, int],
    asked: Asked,
    photos: Vectors,
) -> list[str]:
    """Why the figures may say too much: fidelity above the photos' own, pictures that repeat a photo or its context."""
    if ceiling_dino is None:
        return ["There is one photo, so that no ceiling is known, and not what is memorised."]
    found = []
    fidelities = [picture.dino or 0.0 for picture in pictures]
    if (mean := sum(fidelities) / len(fidelities)) > ceiling_dino:
        found.append(
            f"Memorised? DINO {mean:.3f} is above the ceiling {ceiling_dino:.3f}: the photos among themselves."
        )
    above = []
    for number, case in enumerate(cases):
        of_case = [dino for dino, picture in zip(fidelities, pictures, strict=True) if picture.case == number]
        if of_case and sum(of_case) / len(of_case) > ceiling_dino:
            above.append(case.label or case.prompt)
    if above and len(above) < len(cases):
        found.append(f"Memorised? DINO is above the ceiling {ceiling_dino:.3f} for: {_listed(above)}.")
    if memorised:
        like = sorted({pictures[row].nearest_photo or 0 for row in memorised})
        found.append(
            f"Memorised? {len(memorised)} of {len(pictures)} pictures are nearer to a photo than any two photos are to "
            f"each other (photos {', '.join(map(str, like))})."
        )
    if repeated:
        found.append(
            f"Memorised? {len(repeated)} of {len(pictures)} pictures repeat a photo with its scene (photos "
            f"{', '.join(map(str, sorted(set(repeated.values()))))})."
        )
    return found + _contexts_of_photos(pictures, asked, photos)


def _contexts_of_photos(pictures: Sequence[ScoredPicture], asked: Asked, photos: Vectors) -> list[str]:
    """A warning where pictures show a photo's context and their prompt asks for another."""
    if CONTEXT_HEAD not in asked.labels:
        return []
    wanted, of_photos = asked.labels[CONTEXT_HEAD], photos.labels[CONTEXT_HEAD]
    seen = [(wanted[picture.case], picture.attributes[CONTEXT_HEAD]) for picture in pictures]
    wrong = [shown for asked_for, shown in seen if asked_for not in (None, shown) and shown in of_photos]
    if not wrong:
        return []
    return [
        f"Memorised? {len(wrong)} of {len(pictures)} pictures show a training photo's context where the prompt asks "
        f"for another: {_listed(sorted(set(wrong)))}."
    ]


def _case_numbers(drawn: Drawn, cases: Sequence[PromptCase]) -> list[int]:
    """The case of each picture. Raises ScoreError where a record has no vector, or a case is not there."""
    if len(drawn.records) != len(drawn.vectors):
        raise ScoreError(f"{len(drawn.records)} pictures and {len(drawn.vectors)} vectors; encode every picture once")
    for row, record in enumerate(drawn.records):
        if not 0 <= record.case < len(cases):
            raise ScoreError(f"picture {row} is of case {record.case}, and there are {len(cases)}; draw it of one")
    return [record.case for record in drawn.records]


def _accuracies(seen: Vectors, asked: Asked, numbers: Sequence[int]) -> dict[str, float]:
    """By head, where any case asks for something that it knows."""
    found = {
        head: metrics.accuracy(labels, [asked.labels[head][number] for number in numbers])
        for head, labels in seen.labels.items()
        if head in asked.labels
    }
    return {head: share for head, share in found.items() if share is not None}


def _of_class(of_class: Drawn | None, photos: Vectors) -> list[ScoredPicture]:
    """The class's pictures with their own cosine to the photos."""
    if of_class is None:
        return []
    dino = metrics.per_picture(of_class.vectors.subject, photos.subject, "pictures of the class")
    return [
        record.model_copy(
            update={
                "dino": float(dino[row]),
                "attributes": {head: labels[row] for head, labels in of_class.vectors.labels.items()},
            }
        )
        for row, record in enumerate(of_class.records)
    ]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
