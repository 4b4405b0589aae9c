"""tinyworld's committed encoders, read as any suite is, tell its subjects apart and name what is shown."""

import json
from pathlib import Path

import pytest
import torch
from encoder_check import area_under_curve, captions_right
from encoder_data import HELD_OUT_SEED, TRAINING_SEED, rendered, views_of_identities
from PIL import Image
from world import CONTEXTS, PLAIN, SUBJECTS, is_held_out, render

from booth_service.evaluation.encoders import load_suite

TINYWORLD = Path(__file__).parents[2] / "examples" / "tinyworld"
FOLDER = TINYWORLD / "encoders"


@pytest.fixture(scope="module")
def suite():
    return load_suite(FOLDER)


@pytest.fixture(scope="module")
def photos():
    """All photos of the subjects with the number of their subject, as a user's files hold them."""
    files = [(number, path) for number, subject in enumerate(SUBJECTS)
             for path in sorted((TINYWORLD / "subjects" / subject.name).glob("*.png"))]  # fmt: skip
    return torch.tensor([number for number, _ in files]), [Image.open(path).convert("RGB") for _, path in files]


def test_a_subject_is_nearer_to_itself_elsewhere_than_others_of_its_noun_are(suite, photos):
    numbers, images = photos
    others = views_of_identities(48, 1, HELD_OUT_SEED)
    real, unlike = suite.subject_vectors(images), suite.subject_vectors([render(scene) for scene in others])
    is_same = (numbers[:, None] == numbers[None]).triu(1)
    is_noun = torch.tensor([[SUBJECTS[n].noun == scene.noun for scene in others] for n in numbers.tolist()])
    same, different = (real @ real.T)[is_same], (real @ unlike.T)[is_noun]
    assert area_under_curve(same, different) > 0.99
    assert same.mean() > 0.9
    assert different.mean() < 0.3


def test_it_names_the_places_and_nouns_of_the_photos(suite, photos):
    numbers, images = photos
    seen = suite.attributes(images)
    contexts = [context for subject in SUBJECTS for context in (*subject.contexts, PLAIN)]
    assert sum(a == b for a, b in zip(seen["context"], contexts, strict=True)) >= 38  # of 40
    nouns = [SUBJECTS[number].noun for number in numbers.tolist()]
    assert sum(a == b for a, b in zip(seen["noun"], nouns, strict=True)) >= 38
    assert suite.phrases("context") == {phrase: name for name, phrase in CONTEXTS.items()}


def test_clip_prefers_the_right_place_of_eight():
    figures = captions_right(FOLDER, rendered(views_of_identities(24, 2, HELD_OUT_SEED), 2))
    assert figures["CLIP-T: right context of eight"] > 0.9
    assert figures["CLIP-T of the right caption"] > figures["CLIP-T of captions with another context"] + 0.2


def test_what_the_committed_check_says_is_good_enough():
    for figures in json.loads((FOLDER / "validity.json").read_text()).values():
        for who in ("unseen identities", "subjects"):
            assert figures[f"{who}: same instance, cosine"] > 0.9
            assert figures[f"{who}: others of the noun, cosine"] < 0.3
            assert figures[f"{who}: area under the curve"] > 0.99
        assert figures["context: right"] > 0.95
        assert figures["noun: right"] > 0.95


def test_the_encoders_never_saw_a_subject():
    assert all(is_held_out(subject.identity) for subject in SUBJECTS)
    scenes = views_of_identities(200, 1, TRAINING_SEED)
    assert not any(is_held_out(scene.identity) for scene in scenes)
    assert {scene.identity for scene in scenes}.isdisjoint(
        scene.identity for scene in views_of_identities(200, 1, HELD_OUT_SEED)
    )


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 6 * 2**20


def test_area_under_the_curve_by_hand():
    assert area_under_curve(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5, 0.6])) == pytest.approx((3 + 1.5) / 6)
