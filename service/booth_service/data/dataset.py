"""Which picture lies in which row of which step. Pure: the order depends on the seed, not on the cluster."""

# B = train_batch_size. A step has rows 0..B-1 (instance) and, with the prior, rows B..2B-1 (class).

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One training example: its number in the step, the picture it shows, and whether it is mirrored."""

    number: int
    is_class: bool
    image: int
    flip: bool


def step_rows(
    step: int, *, seed: int, train_batch_size: int, num_photos: int, num_class_images: int, random_flip: bool
) -> list[Row]:
    """All rows of a step. Each kind of picture is walked through in an order shuffled anew for every epoch."""
    rows = []
    kinds = [(False, num_photos)] + ([(True, num_class_images)] if num_class_images else [])
    for is_class, count in kinds:
        for place in range(train_batch_size):
            epoch, position = divmod(step * train_batch_size + place, count)
            image = _order(seed, epoch, count, is_class)[position]
            number = place + (train_batch_size if is_class else 0)
            flip = random_flip and random.Random(f"flip {seed} {step} {number}").random() < 0.5
            rows.append(Row(number, is_class, image, flip))
    return rows


def rank_rows(rows: list[Row], rank: int, ranks: int) -> list[Row]:
    """The rows of one rank: every ranks-th, so that both kinds are spread evenly."""
    return rows[rank::ranks]


def _order(seed: int, epoch: int, count: int, is_class: bool) -> list[int]:
    order = list(range(count))
    random.Random(f"order {seed} {epoch} {is_class}").shuffle(order)
    return order
