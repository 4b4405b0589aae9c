"""The paper's metrics against values worked out by hand."""

import math

import pytest
import torch

from booth_service.errors import ScoreError
from booth_service.evaluation import metrics

X, Y, Z = torch.eye(3)
DIAGONAL = (X + Y) / math.sqrt(2)


def rows(*vectors: torch.Tensor) -> torch.Tensor:
    return torch.stack(vectors)


def test_mean_pairwise_takes_every_pair():
    assert metrics.mean_pairwise(rows(X, Y), rows(X, X, Z)) == pytest.approx(2 / 6)
    assert metrics.mean_pairwise(rows(DIAGONAL), rows(X, -X, Y)) == pytest.approx(math.sqrt(0.5) / 3)
    assert metrics.per_picture(rows(X, Y), rows(X, X, Z)).tolist() == pytest.approx([2 / 3, 0])


def test_the_ceiling_pairs_no_photo_with_itself():
    assert metrics.ceiling(rows(X, X, Y)) == pytest.approx(1 / 3)  # with self pairs it would be 5 / 9
    with pytest.raises(ScoreError, match="only one, and a ceiling needs two or more"):
        metrics.ceiling(rows(X))


def test_clip_t_compares_each_picture_with_its_own_prompt():
    assert metrics.clip_t(rows(X, Y), rows(X, X)) == pytest.approx(0.5)
    with pytest.raises(ScoreError, match="2 pictures and 1 prompts"):
        metrics.clip_t(rows(X, Y), rows(X))


def test_div_is_a_mean_over_prompts_of_means_over_pairs():
    prompts = ["a", "b", "a", "a", "b", "c"]
    assert metrics.pairs_of_prompts(prompts) == [(0, 2), (0, 3), (2, 3), (1, 4)]
    distances = {(0, 2): 0.1, (0, 3): 0.2, (2, 3): 0.6, (1, 4): 0.7}
    assert metrics.div(distances, prompts) == pytest.approx((0.3 + 0.7) / 2)  # c has one picture: no pair
    assert metrics.div({}, ["a", "b"]) is None
    with pytest.raises(ScoreError, match="pictures 1 and 4 was not measured"):
        metrics.div({pair: 0.1 for pair in distances if pair != (1, 4)}, prompts)
    with pytest.raises(ScoreError, match="pictures 1 and 4 is nan"):
        metrics.div(distances | {(1, 4): math.nan}, prompts)


def test_accuracy_leaves_out_what_was_not_asked():
    assert metrics.accuracy(["sea", "moon", "city"], ["sea", "sea", None]) == 0.5
    assert metrics.accuracy(["sea"], [None]) is None
    with pytest.raises(ScoreError, match="1 labels for 2 pictures"):
        metrics.accuracy(["sea"], ["sea", "sea"])


def test_a_picture_much_nearer_to_a_photo_than_photos_are_to_each_other_repeats_it():
    to_photos = torch.tensor([[0.19, 0.5], [0.6, 0.1], [0.2, 0.4]], dtype=torch.float64)
    assert metrics.repeated(to_photos, [0.4, 0.9]) == {0: 0, 1: 1}  # 0.2 is half of 0.4, and not below it
    assert metrics.repeated(to_photos, []) == {}  # of one photo
    assert metrics.repeated(torch.empty(3, 0), [0.4]) == {}  # not measured


def test_a_picture_nearer_to_a_photo_than_photos_are_to_each_other_is_memorised():
    near = torch.nn.functional.normalize(X + 0.1 * Y, dim=0)
    photos = rows(X, DIAGONAL, Z)  # the closest two: cosine 0.707
    pictures = rows(near, torch.nn.functional.normalize(X - 1.1 * Y, dim=0), -Z)
    assert metrics.memorised(pictures, photos) == [0]  # the second is nearest to a photo too, but less so
    assert metrics.nearest_photos(pictures, photos)[0] == (0, pytest.approx(1 / math.sqrt(1.01)))


def test_unit_makes_rows_of_length_one():
    made = metrics.unit(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "vectors")
    assert made.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 1]]
    assert made.dtype == torch.float32
    with pytest.raises(ScoreError, match="row 1 is all zeros"):
        metrics.unit(rows(X, torch.zeros(3)), "vectors")


@pytest.mark.parametrize(
    ("generated", "real", "said"),
    [
        (rows(X, torch.tensor([math.nan, 0, 0])), rows(X, Y), "generated pictures: row 1 holds values .* not finite"),
        (rows(X), rows(X, torch.full((3,), math.inf)), "photos of the subject: row 1 holds values .* not finite"),
        (rows(X, torch.zeros(3)), rows(X, Y), "generated pictures: row 1 has length 0, not 1"),
        (rows(X, Y, 2 * Z), rows(X, Y), "row 2 has length 2, not 1"),
        (torch.empty(0, 3), rows(X, Y), "generated pictures: there is none"),
        (rows(X), torch.empty(0, 3), "photos of the subject: there is none"),
        (torch.eye(2), rows(X, Y), "width 2, photos of the subject of 3: .* same suite"),
        (X, rows(X, Y), r"the shape is \(3,\); give one vector a row"),
    ],
)
def test_what_is_no_matrix_of_unit_vectors_is_named(generated, real, said):
    with pytest.raises(ScoreError, match=said):
        metrics.mean_pairwise(generated, real)
    with pytest.raises(ScoreError, match=said):
        metrics.memorised(generated, real)


def test_every_metric_is_defined_in_words():
    told = {"dino", "clip_i", "clip_t", "pres", "div", "ceiling", "attributes", "memorised", "averaging", "interval"}
    assert set(metrics.DEFINITIONS) == told
    assert all(text.endswith(".") for text in metrics.DEFINITIONS.values())
