"""Which picture lies in which row."""

from collections import Counter

import pytest

from booth_service.data.dataset import Row, micro_batches, rank_rows, step_rows

ARGUMENTS = {
    "seed": 3,
    "train_batch_size": 4,
    "photo_subjects": [0] * 5,
    "class_subjects": [0] * 6,
    "random_flip": False,
}


def images(steps: int, is_class: bool, **arguments) -> Counter[int]:
    rows = [row for step in range(steps) for row in step_rows(step, **arguments)]
    return Counter(row.image for row in rows if row.is_class is is_class)


def test_every_picture_is_shown_equally_often() -> None:
    assert images(15, False, **ARGUMENTS) == {image: 12 for image in range(5)}
    assert images(15, True, **ARGUMENTS) == {image: 10 for image in range(6)}


def test_ranks_share_all_rows_and_both_kinds() -> None:
    rows = step_rows(9, **ARGUMENTS)
    assert [row.number for row in rows] == list(range(8))
    for ranks in (1, 2, 4, 8):
        shares = [rank_rows(rows, rank, ranks) for rank in range(ranks)]
        assert sorted(row.number for share in shares for row in share) == list(range(8))
        if ranks <= 4:
            assert all(len({row.is_class for row in share}) == 2 for share in shares)


def test_micro_batches_are_the_ranks_rows_in_order() -> None:
    rows = step_rows(0, **ARGUMENTS)
    assert [row for batch in micro_batches(rows, 3) for row in batch] == rows
    assert [len(batch) for batch in micro_batches(rows, 3)] == [3, 3, 2]


def test_steps_are_reproducible_and_flips_and_places_are_drawn_per_row() -> None:
    flipped = ARGUMENTS | {"random_flip": True}
    assert step_rows(7, **flipped) == step_rows(7, **flipped)
    rows = [row for step in range(50) for row in step_rows(step, **flipped)]
    assert 0.35 < sum(row.flip for row in rows) / len(rows) < 0.65
    assert len({row.place for row in rows}) == len(rows)
    assert all(0 <= share < 1 for row in rows for share in row.place)
    assert not any(row.flip for row in step_rows(7, **ARGUMENTS))


def test_subjects_take_turns_and_a_class_row_is_of_its_neighbours_class() -> None:
    photos, classes = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]
    arguments = ARGUMENTS | {"photo_subjects": photos, "class_subjects": classes}
    seen: Counter[int] = Counter()
    for step in range(12):
        rows = step_rows(step, **arguments)
        instance, class_ = rows[:4], rows[4:]
        assert [photos[row.image] for row in instance] == [classes[row.image] for row in class_]
        assert Counter(photos[row.image] for row in instance) == {0: 2, 1: 2}
        seen.update(row.image for row in instance)
    assert [seen[image] for image in range(6)] == [6, 6, 6, 6, 12, 12]  # 24 rows each, over their own photos


@pytest.mark.parametrize("shapes", [[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]])
def test_a_step_has_one_shape_and_every_photo_comes_equally_often(shapes: list[int]) -> None:
    arguments = ARGUMENTS | {"photo_shapes": shapes}
    counts: Counter[int] = Counter()
    for step in range(5 * 12):
        rows = step_rows(step, **arguments)
        assert len({row.shape for row in rows}) == 1
        assert {shapes[row.image] for row in rows if not row.is_class} == {rows[0].shape}
        counts.update(row.image for row in rows if not row.is_class)
    assert set(counts.values()) == {48}


def test_without_class_images_there_are_instance_rows_alone() -> None:
    rows = step_rows(2, **(ARGUMENTS | {"class_subjects": []}))
    assert [type(row) for row in rows] == [Row] * 4
    assert not any(row.is_class for row in rows)
