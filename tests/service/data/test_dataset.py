"""Which picture lies in which row."""

from collections import Counter

from booth_service.data.dataset import rank_rows, step_rows

ARGUMENTS = {"seed": 3, "train_batch_size": 4, "num_photos": 5, "num_class_images": 6, "random_flip": False}


def test_every_picture_is_shown_equally_often() -> None:
    rows = [row for step in range(15) for row in step_rows(step, **ARGUMENTS)]
    photos = Counter(row.image for row in rows if not row.is_class)
    classes = Counter(row.image for row in rows if row.is_class)
    assert photos == {image: 12 for image in range(5)}
    assert classes == {image: 10 for image in range(6)}


def test_ranks_share_all_rows_and_both_kinds() -> None:
    rows = step_rows(9, **ARGUMENTS)
    assert [row.number for row in rows] == list(range(8))
    for ranks in (1, 2, 4, 8):
        shares = [rank_rows(rows, rank, ranks) for rank in range(ranks)]
        assert sorted(row.number for share in shares for row in share) == list(range(8))
        if ranks <= 4:
            assert all(len({row.is_class for row in share}) == 2 for share in shares)


def test_steps_are_reproducible_and_flips_are_drawn_per_row() -> None:
    flipped = ARGUMENTS | {"random_flip": True}
    assert step_rows(7, **flipped) == step_rows(7, **flipped)
    flips = [row.flip for step in range(50) for row in step_rows(step, **flipped)]
    assert 0.35 < sum(flips) / len(flips) < 0.65
    assert not any(row.flip for row in step_rows(7, **ARGUMENTS))
