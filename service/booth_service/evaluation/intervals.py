"""Means over subjects with bootstrap intervals, and paired differences: pure, seeded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from booth_service.errors import ScoreError

RESAMPLES = 10_000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Interval:
    """A mean over `subjects` subjects, and where it lies with probability LEVEL; of one subject there is no saying."""

    mean: float
    low: float | None
    high: float | None
    subjects: int


def over_subjects(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each subject's mean over its own figures (prompts, seeds): the first step of every average.

    Raises ScoreError, naming the subject, where it has none or one is not finite.
    """
    means = {}
    for subject, values in figures.items():
        if not values:
            raise ScoreError(f"subject {subject!r} has no figure; leave it out, or score it first")
        means[subject] = math.fsum(_finite(subject, value) for value in values) / len(values)
    return means


def bootstrap(by_subject: Mapping[str, float], *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean over subjects with its percentile bootstrap interval: subjects drawn with replacement."""
    if not by_subject:
        raise ScoreError("there is no subject to average over; score at least one")
    values = torch.tensor([_finite(name, by_subject[name]) for name in sorted(by_subject)], dtype=torch.float64)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, None, None, 1)
    generator = torch.Generator().manual_seed(seed)
    means = [
        values[torch.randint(count, (min(_RESAMPLES_AT_ONCE, resamples - done), count), generator=generator)].mean(1)
        for done in range(0, resamples, _RESAMPLES_AT_ONCE)
    ]
    outside = (1 - LEVEL) / 2
    low, high = torch.quantile(torch.cat(means), torch.tensor([outside, 1 - outside], dtype=torch.float64))
    return Interval(mean, float(low), float(high), count)


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], *, seed: int) -> Interval:
    """a - b, subject by subject, over those that both have. Raises ScoreError where they share none."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ScoreError(
            f"no subject has both figures ({', '.join(sorted(a)) or 'none'}; {', '.join(sorted(b)) or 'none'}); "
            "score the same subjects in both arms"
        )
    return bootstrap({name: _finite(name, a[name]) - _finite(name, b[name]) for name in shared}, seed=seed)


def _finite(subject: str, value: float) -> float:
    if not math.isfinite(value):
        raise ScoreError(f"subject {subject!r} has the figure {value}; its pictures or vectors are damaged, redo them")
    return float(value)
