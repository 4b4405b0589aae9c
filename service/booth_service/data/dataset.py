"""Which picture lies in which row of which step. Pure: the order depends on the seed, not on the cluster."""

# B = train_batch_size. A step has rows 0..B-1 (instance) and, with the prior, rows B..2B-1 (class).

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """A picture to train on, RGB, decoded when asked. `size` is (height, width) in pixels, `subject` its subject's
    number; `load_mask` gives an 8-bit grayscale picture of that size, white inside the subject. Each row takes one of
    `prompt` and `more_prompts`."""

    load: Callable[[], Image]
    size: tuple[int, int]
    prompt: str
    subject: int = 0
    load_mask: Callable[[], Image] | None = None
    more_prompts: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that the picture may be trained with."""
        return (self.prompt, *self.more_prompts)


@dataclass(frozen=True)
class Row:
    """One training example: its number in the step, the picture it shows, whether mirrored, and where it is cut.

    `place` (two shares in [0, 1)) says where a random crop lies; `shape` is the number of the step's bucket; `wording`,
    in [0, 1), says which of the picture's prompts it is.
    """

    number: int
    is_class: bool
    image: int
    flip: bool
    place: tuple[float, float]
    shape: int = 0
    wording: float = 0.0

    def prompt_of(self, picture: Picture) -> str:
        """The prompt that the row trains the picture with."""
        return picture.prompts[int(self.wording * len(picture.prompts))]


def step_rows(
    step: int,
    *,
    seed: int,
    train_batch_size: int,
    photo_subjects: Sequence[int],
    class_subjects: Sequence[int],
    random_flip: bool,
    photo_shapes: Sequence[int] = (),
) -> list[Row]:
    """All rows of a step, all of one shape.

    Instance rows take the subjects in turn, and each subject's photos in an order shuffled anew for every epoch. A
    class row shows the class of the instance row beside it. `photo_shapes` (one bucket number a photo, or empty: all
    are square) makes steps of one bucket each, as often as it has photos.
    """
    shapes = tuple(photo_shapes) or (0,) * len(photo_subjects)
    shape, earlier_steps = _shape_of(step, seed, shapes)
    instance_rows, class_rows = [], []
    by_subject = _by_subject(tuple(photo_subjects), shapes, shape)
    of_class = _by_subject(tuple(class_subjects), (0,) * len(class_subjects), 0)
    for place in range(train_batch_size):
        turn, which = divmod(earlier_steps * train_batch_size + place, len(by_subject))
        subject, photos = by_subject[which]
        photo = _walk(seed, turn, photos, ("photo", subject, shape))
        instance_rows.append(_row(seed, step, place, False, photo, random_flip, shape))
        if class_subjects:
            image = _walk(seed, turn, dict(of_class)[subject], ("class", subject, shape))
            class_rows.append(_row(seed, step, train_batch_size + place, True, image, random_flip, shape))
    return instance_rows + class_rows


def rank_rows(rows: list[Row], rank: int, ranks: int) -> list[Row]:
    """The rows of one rank: every ranks-th, so that both kinds are spread evenly."""
    return rows[rank::ranks]


def micro_batches(rows: list[Row], micro_batch_size: int) -> list[list[Row]]:
    """A rank's rows in the portions that one forward takes."""
    return [rows[start : start + micro_batch_size] for start in range(0, len(rows), micro_batch_size)]


def _row(seed: int, step: int, number: int, is_class: bool, image: int, random_flip: bool, shape: int) -> Row:
    draw = random.Random(f"row {seed} {step} {number}")
    place = (draw.random(), draw.random())
    flip = draw.random() < 0.5 and random_flip
    return Row(number, is_class, image, flip, place, shape, draw.random())


def _walk(seed: int, position: int, images: tuple[int, ...], name: tuple[object, ...]) -> int:
    epoch, place = divmod(position, len(images))
    return _shuffled(images, f"order {seed} {epoch} {name}")[place]


def _shape_of(step: int, seed: int, shapes: tuple[int, ...]) -> tuple[int, int]:
    """The step's bucket, and how many steps before it had the same one."""
    epoch, place = divmod(step, len(shapes))
    order = _shuffled(shapes, f"shapes {seed} {epoch}")
    return order[place], epoch * shapes.count(order[place]) + order[:place].count(order[place])


@lru_cache(maxsize=256)
def _shuffled(items: tuple[int, ...], name: str) -> tuple[int, ...]:
    order = list(items)
    random.Random(name).shuffle(order)
    return tuple(order)


@lru_cache(maxsize=256)
def _by_subject(
    subjects: tuple[int, ...], shapes: tuple[int, ...], shape: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """For each subject with pictures of this shape: its number and theirs."""
    numbers = sorted({subject for subject, own in zip(subjects, shapes, strict=True) if own == shape})
    return tuple(
        (number, tuple(i for i, subject in enumerate(subjects) if subject == number and shapes[i] == shape))
        for number in numbers
    )
