"""An evaluation's arms as pictures to draw, as scores, and as the report's rows. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from booth.contract.bulk import DrawnPicture
from booth.contract.evaluation import Arm, EvaluationBrief, Report, ReportRow
from booth.contract.jobs import PromptCase
from booth.contract.scores import Score, ScoredPicture
from booth.contract.serving import Draw
from booth_service.evaluation.encoding import References
from booth_service.evaluation.metrics import DEFINITIONS
from booth_service.evaluation.score import CLIP_TEXTS, Asked, Drawn, score_of
from booth_service.evaluation.vectors import Vectors

CONTEXT_HEAD = "context"
LAST_SEED = 2**63


def arm_draws(brief: EvaluationBrief, arm: Arm) -> list[Draw]:
    """All pictures of an arm: `num_images` of each case, then those of the class; the k-th of each from seed + k."""
    prompts = [(case.prompt, brief.num_images) for case in arm.cases]
    if arm.draws_class:
        prompts.append((arm.class_prompt, brief.num_class_images))
    return [
        Draw(prompt=prompt, negative_prompt="", seed=(brief.seed + k) % LAST_SEED)
        for prompt, count in prompts
        for k in range(count)
    ]


def scores_of(
    brief: EvaluationBrief,
    pictures: Sequence[Sequence[DrawnPicture]],
    vectors: Sequence[Vectors],
    references: References,
) -> list[Score]:
    """The score of each arm, from vectors alone. Raises ScoreError."""
    of_class = {
        number: _class_drawn(brief, arm, pictures[number], vectors[number])
        for number, arm in enumerate(brief.arms)
        if arm.draws_class and brief.num_class_images
    }
    base = next((number for number, arm in enumerate(brief.arms) if arm.kind == "base"), None)
    found = []
    for number, arm in enumerate(brief.arms):
        asked = references.asked[number]
        found.append(
            score_of(
                step=arm.step,
                suite=brief.suite,
                cases=arm.cases if brief.is_unseen_told else unseen_by_heads(arm.cases, asked, references.photos),
                asked=asked,
                drawn=_cases_drawn(brief, arm, pictures[number], vectors[number]),
                photos=references.photos,
                of_class=of_class.get(number, of_class.get(base) if base is not None else None),
            )
        )
    return found


def unseen_by_heads(cases: Sequence[PromptCase], asked: Asked, photos: Vectors) -> list[PromptCase]:
    """Cases whose context no photo shows, as the context head sees the photos; where there is none, as they were."""
    seen = set(photos.labels.get(CONTEXT_HEAD, []))
    labels = asked.labels.get(CONTEXT_HEAD, [None] * len(cases)) if seen else [None] * len(cases)
    return [
        case if label is None else case.model_copy(update={"is_unseen": label not in seen})
        for case, label in zip(cases, labels, strict=True)
    ]


def report_of(brief: EvaluationBrief, scores: Sequence[Score], described: dict[str, str]) -> Report:
    """The report: a row for each arm, in order."""
    convention = brief.settings.get("text for CLIP-T", "noun")
    definitions = DEFINITIONS | {"clip_t": f"{DEFINITIONS['clip_t']} {CLIP_TEXTS[convention]}."}
    return Report(
        title=f"Evaluation of {brief.subject}",
        rows=[
            ReportRow(subject=brief.subject, arm=arm.name, seed=brief.seed, labels=arm.labels, score=score)
            for arm, score in zip(brief.arms, scores, strict=True)
        ],
        photos={brief.subject: list(brief.photos)},
        definitions=definitions,
        settings=brief.settings | described,
    )


def _cases_drawn(brief: EvaluationBrief, arm: Arm, pictures: Sequence[DrawnPicture], vectors: Vectors) -> Drawn:
    count = len(arm.cases) * brief.num_images
    records = [_record(picture, picture.index // brief.num_images) for picture in pictures[:count]]
    return Drawn(records, _part(vectors, 0, count))


def _class_drawn(brief: EvaluationBrief, arm: Arm, pictures: Sequence[DrawnPicture], vectors: Vectors) -> Drawn:
    count = len(arm.cases) * brief.num_images
    return Drawn([_record(picture, 0) for picture in pictures[count:]], _part(vectors, count, len(vectors)))


def _record(picture: DrawnPicture, case: int) -> ScoredPicture:
    return ScoredPicture(case=case, seed=picture.seed, key=picture.key, bytes=picture.bytes, sha256=picture.sha256)


def _part(vectors: Vectors, start: int, end: int) -> Vectors:
    """Pictures `start` to `end` - 1, numbered from 0."""
    rows = torch.arange(start, end)
    distances = {(i - start, j - start): value for (i, j), value in vectors.distances.items() if start <= i < j < end}
    labels = {head: each[start:end] for head, each in vectors.labels.items()}
    return replace(
        vectors,
        subject=vectors.subject[rows],
        clip=vectors.clip[rows],
        labels=labels,
        distances=distances,
        to_photos=vectors.to_photos[rows],
    )
