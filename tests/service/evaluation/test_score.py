"""Scores: figures worked out by hand from vectors, warnings, and a whole suite over stored blocks."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_suite import write_tiny_suite

from booth.contract.prompt_sets import cases
from booth.contract.scores import ScoredPicture
from booth_service.errors import ScoreError
from booth_service.evaluation import metrics
from booth_service.evaluation.encoders import load_suite
from booth_service.evaluation.score import Asked, Drawn, asked_label, asked_of, photo_vectors, score, score_of
from booth_service.evaluation.vectors import Vectors, joined, vectors_of

X, Y, Z = torch.eye(3)
CASES = cases(["a {subject} in the jungle", "a {subject} on the beach"], "sks", "dog", unseen=["on the beach"])
ASKED = Asked(torch.stack([X, Y]), {"context": ["jungle", "beach"]})
PHOTOS = Vectors(torch.stack([X, Y]), torch.stack([X, X]), {"context": ["jungle", "moon"]})


def at(degrees: float) -> torch.Tensor:
    """A unit vector this far from X towards Y."""
    return math.cos(math.radians(degrees)) * X + math.sin(math.radians(degrees)) * Y


def record(case: int, seed: int = 0) -> ScoredPicture:
    return ScoredPicture(case=case, seed=seed, key=f"{case}-{seed}.png", bytes=1, sha256="")


def drawn(*subject: torch.Tensor, labels=("jungle", "jungle", "beach")) -> Drawn:
    """Two pictures of the first case, one of the second; CLIP's vectors are X, Y, Y."""
    vectors = Vectors(torch.stack(subject), torch.stack([X, Y, Y]), {"context": list(labels)}, {(0, 1): 0.3})
    return Drawn([record(0, 0), record(0, 1), record(1, 0)], vectors)


def scored(pictures: Drawn, step: int = 5, photos: Vectors = PHOTOS, of_class: Drawn | None = None):
    return score_of(step=step, suite="tiny", cases=CASES, asked=ASKED, drawn=pictures, photos=photos, of_class=of_class)


def test_a_picture_that_repeats_a_photo_with_its_scene_is_warned_of():
    photos = replace(PHOTOS, distances={(0, 1): 0.5})
    plain = drawn(at(45), at(45), at(45))  # no nearer to one photo than to the other
    copied = replace(
        plain, vectors=replace(plain.vectors, to_photos=torch.tensor([[0.3, 0.4], [0.5, 0.2], [0.6, 0.5]]))
    )
    assert scored(plain, photos=photos).memorised == [0, 1, 2]  # nearer than the photos to each other, all three
    far = replace(copied, vectors=replace(copied.vectors, subject=torch.stack([Z, Z, Z])))
    found = scored(far, photos=photos)
    assert (found.memorised, found.repeated, found.like_a_photo) == ([], [1], [1])
    assert "Memorised? 1 of 3 pictures repeat a photo with its scene (photos 1)." in found.warnings
    assert scored(far, step=0, photos=photos).like_a_photo == []  # the frozen base has not seen the photos


def test_every_figure_is_as_by_hand():
    classes = Drawn([record(0)], Vectors(torch.stack([at(60)]), torch.stack([Z]), {"context": ["moon"]}))
    found = scored(drawn(X, Z, at(30)), of_class=classes)
    assert found.dino == pytest.approx((0.5 + 0 + (math.sqrt(0.75) + 0.5) / 2) / 3)
    assert found.unseen_dino == pytest.approx((math.sqrt(0.75) + 0.5) / 2)
    assert found.clip_i == pytest.approx((1 + 0 + 0) / 3)
    assert found.clip_t == pytest.approx((1 + 0 + 1) / 3)  # the second is of the first case: Y beside X
    assert found.pres == pytest.approx((0.5 + math.sqrt(0.75)) / 2)
    assert found.div == pytest.approx(0.3)  # the second case has one picture
    assert (found.ceiling_dino, found.ceiling_clip_i) == (pytest.approx(0), pytest.approx(1))
    assert found.accuracies == {"context": 1.0}
    first, second, third = found.pictures
    assert (first.nearest_photo, first.nearest_dino, first.dino) == (0, pytest.approx(1), pytest.approx(0.5))
    assert (second.dino, second.clip_t, second.attributes) == (0, 0, {"context": "jungle"})
    assert (third.key, third.nearest_photo) == ("1-0.png", 0)
    assert found.class_pictures[0].dino == pytest.approx(found.pres)
    assert (found.step, found.suite, found.cases) == (5, "tiny", CASES)


def test_without_class_pictures_or_unseen_cases_those_figures_are_missing():
    plain = [case.model_copy(update={"is_unseen": False}) for case in CASES]
    found = score_of(step=5, suite="tiny", cases=plain, asked=ASKED, drawn=drawn(X, Y, Z), photos=PHOTOS)
    assert (found.pres, found.unseen_dino, found.class_pictures) == (None, None, [])


CLOSE = replace(PHOTOS, subject=torch.stack([X, at(60)]))  # their cosine is 0.5, and so is the ceiling


def test_fidelity_above_the_ceiling_is_warned_of():
    found = scored(drawn(at(30), at(30), at(30)), photos=CLOSE)  # 0.866 to both photos
    assert found.dino > found.ceiling_dino
    assert found.warnings[0].startswith("Memorised? DINO 0.866 is above the ceiling 0.500")
    assert found.memorised == [0, 1, 2]


def test_one_prompt_above_the_ceiling_is_named():
    found = scored(drawn(-X, -X, at(30)), photos=CLOSE)
    assert found.dino < found.ceiling_dino
    assert found.memorised == [2]
    assert found.warnings == [
        "Memorised? DINO is above the ceiling 0.500 for: on the beach.",
        "Memorised? 1 of 3 pictures are nearer to a photo than any two photos are to each other (photos 0).",
    ]


def test_the_context_of_a_photo_in_place_of_the_one_asked_for_is_warned_of():
    found = scored(drawn(-X, -X, -X, labels=("jungle", "moon", "moon")))
    assert found.accuracies == {"context": pytest.approx(1 / 3)}
    assert found.warnings == [
        "Memorised? 2 of 3 pictures show a training photo's context where the prompt asks for another: moon."
    ]
    assert scored(drawn(-X, -X, -X, labels=("jungle", "beach", "sea"))).warnings == []  # no photo shows beach or sea


def test_the_frozen_base_is_not_warned_of():
    found = scored(drawn(at(30), at(30), at(30)), step=0, photos=CLOSE)
    assert (found.memorised, found.warnings) == ([], [])
    assert found.dino > found.ceiling_dino


def test_one_photo_gives_no_ceiling_and_says_so():
    one = Vectors(X.unsqueeze(0), X.unsqueeze(0), {"context": ["jungle"]})
    found = scored(drawn(X, X, X), photos=one)
    assert (found.dino, found.ceiling_dino, found.ceiling_clip_i, found.memorised) == (1, None, None, [])
    assert found.warnings == ["There is one photo, so that no ceiling is known, and not what is memorised."]


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ScoreError, match="generated pictures: row 1 holds values that are not finite"):
        scored(drawn(X, X * math.nan, X))
    with pytest.raises(ScoreError, match="2 pictures and 3 vectors"):
        scored(replace(drawn(X, X, X), records=[record(0), record(1)]))
    with pytest.raises(ScoreError, match="picture 2 is of case 7, and there are 2"):
        scored(replace(drawn(X, X, X), records=[record(0), record(0), record(7)]))
    with pytest.raises(ScoreError, match="LPIPS of pictures 0 and 1 was not measured"):
        scored(replace(drawn(X, X, X), vectors=replace(drawn(X, X, X).vectors, distances={})))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a dog in the snow", "snow"),
        ("a dog in the snow storm", "storm"),  # the longest
        ("a dog in the snowfield", None),  # whole words
        ("a dog", None),
    ],
)
def test_a_prompt_asks_for_the_label_of_its_phrase(text, label):
    assert asked_label({"in the snow": "snow", "in the snow storm": "storm"}, text) == label


def test_vectors_keep_in_bytes():
    vectors = drawn(X, Y, Z).vectors
    back = Vectors.from_bytes(vectors.to_bytes())
    assert torch.equal(back.subject, vectors.subject)
    assert torch.equal(back.clip, vectors.clip)
    assert (back.labels, back.distances) == (vectors.labels, vectors.distances)
    assert back.to_bytes() == vectors.to_bytes()
    for damaged in (vectors.to_bytes()[:-9], b"", b"{}"):
        with pytest.raises(ScoreError, match="stored vectors are damaged"):
            Vectors.from_bytes(damaged)


def test_blocks_of_other_encoders_are_not_joined():
    with pytest.raises(ScoreError, match="come from different encoders"):
        joined([PHOTOS, Vectors(torch.eye(2), torch.eye(2), {"context": ["sea", "sea"]})])
    with pytest.raises(ScoreError, match="no vectors to join"):
        joined([])


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy()).resize((48, 48), Image.Resampling.BICUBIC)


def test_blocks_come_to_the_same_score_as_all_at_once(tmp_path):
    suite = load_suite(write_tiny_suite(tmp_path))
    records = [record(case, seed) for case in (0, 1) for seed in (0, 1)]
    images, photos, of_class = ([picture(seed) for seed in seeds] for seeds in (range(4), range(10, 13), range(20, 22)))
    whole = score(
        suite,
        step=5,
        cases=CASES,
        drawings=list(zip(records, images, strict=True)),
        photos=photos,
        class_drawings=[(record(0, seed), image) for seed, image in enumerate(of_class)],
    )
    blocks = [Vectors.from_bytes(vectors_of(suite, images[i : i + 2], [i, i], photos).to_bytes()) for i in (0, 2)]
    parts = score_of(
        step=5,
        suite="tiny",
        cases=CASES,
        asked=asked_of(suite, CASES),
        drawn=Drawn(records, joined(blocks)),
        photos=photo_vectors(suite, photos),
        of_class=Drawn([record(0, 0), record(0, 1)], vectors_of(suite, of_class)),
    )
    assert (parts.warnings, parts.like_a_photo) == (whole.warnings, whole.like_a_photo)
    for name in ("dino", "clip_i", "clip_t", "pres", "div", "unseen_dino", "ceiling_dino"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-5)
    assert whole.dino == pytest.approx(
        metrics.mean_pairwise(suite.subject_vectors(images), suite.subject_vectors(photos))
    )
    pairs = suite.perceptual_distances([images[0], images[2]], [images[1], images[3]])
    assert whole.div == pytest.approx(float(pairs.mean()), rel=1e-4)
    texts = suite.clip_text_vectors(["a dog in the jungle"] * 2 + ["a dog on the beach"] * 2)
    assert whole.clip_t == pytest.approx(float((suite.clip_image_vectors(images) * texts).sum(1).mean()), abs=1e-6)
