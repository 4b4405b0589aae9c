"""Bootstrap intervals: repeatable, of the nominal coverage, paired where arms are compared."""

import math

import pytest
import torch

from booth_service.errors import ScoreError
from booth_service.evaluation.intervals import bootstrap, over_subjects, paired_difference


def named(values):
    return {f"s{number:02d}": float(value) for number, value in enumerate(values)}


def test_a_subject_counts_once_however_many_pictures_it_has():
    means = over_subjects({"dog": [1.0], "cat": [0.0, 0.0, 0.0]})
    assert bootstrap(means, seed=1).mean == 0.5
    with pytest.raises(ScoreError, match="'cat' has no figure"):
        over_subjects({"cat": []})


def test_the_interval_is_that_of_resampled_means():
    """Two subjects at 0 and 1: a resampled mean is 0, 0.5 or 1 with 1/4, 1/2, 1/4."""
    found = bootstrap({"a": 0.0, "b": 1.0}, seed=1)
    assert (found.mean, found.low, found.high, found.subjects) == (0.5, 0.0, 1.0, 2)
    values = named(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    found = bootstrap(values, seed=1)
    spread = torch.tensor(list(values.values())).std(correction=0) / math.sqrt(50)
    assert found.high - found.low == pytest.approx(2 * 1.96 * float(spread), rel=0.1)


def test_it_is_the_same_for_the_same_seed_in_any_order():
    values = named(torch.rand(9, generator=torch.Generator().manual_seed(3)))
    again = dict(reversed(values.items()))
    assert bootstrap(values, seed=4) == bootstrap(again, seed=4)
    assert bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(7)
    samples = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    intervals = [bootstrap(named(sample), seed=11, resamples=1_000) for sample in samples]
    covered = sum(found.low <= 0 <= found.high for found in intervals) / len(intervals)
    assert 0.88 <= covered <= 0.98  # 95 % less what a percentile bootstrap of 20 lacks, within three deviations


def test_a_difference_is_paired_by_subject():
    """Subjects differ by far more than the arms do; pairing takes that away."""
    base = named([0.1, 0.5, 0.9, 0.3, 0.7])
    better = {name: value + 0.05 for name, value in base.items()}
    found = paired_difference(better | {"only here": 9.0}, base, seed=2)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.05), pytest.approx(0.05))
    assert found.subjects == 5


def test_one_subject_has_no_interval():
    found = bootstrap({"dog": 0.7}, seed=1)
    assert (found.mean, found.low, found.high, found.subjects) == (0.7, None, None, 1)


def test_bad_figures_are_named():
    with pytest.raises(ScoreError, match="'cat' has the figure nan"):
        bootstrap({"dog": 1.0, "cat": math.nan}, seed=1)
    with pytest.raises(ScoreError, match="no subject to average"):
        bootstrap({}, seed=1)
    with pytest.raises(ScoreError, match="no subject has both"):
        paired_difference({"dog": 1.0}, {"cat": 1.0}, seed=1)
