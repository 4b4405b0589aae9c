"""Rows of a report with scores that nobody measured, for what is worked out of scores."""

from booth.contract.evaluation import ReportRow
from booth.contract.scores import Score

SUBJECT_NAMES = ("teapot", "dog", "cat")


def row(subject, arm, step, seed=0, context=None, **figures):
    """One score; `context` is the share of pictures with the right context."""
    accuracies = {} if context is None else {"context": context}
    score = Score(step=step, suite="tinyworld", accuracies=accuracies, **figures)
    return ReportRow(subject=subject, arm=arm, seed=seed, score=score)


def rows_of(arm, step, subjects=SUBJECT_NAMES, **figures):
    """The same score for several subjects."""
    return [row(subject, arm, step, **figures) for subject in subjects]


def as_in_table_3(pres_with=0.2, pres_without=0.9):
    """Both arms of prior preservation at 0 and 600 steps, as the paper has them."""
    base = {"dino": 0.05, "pres": 0.1, "div": 0.5, "clip_i": 0.3, "context": 1.0}
    return [
        *rows_of("prior", 0, **base),
        *rows_of("no prior", 0, **base),
        *rows_of("prior", 600, dino=0.8, pres=pres_with, div=0.3, clip_i=0.7, context=0.95),
        *rows_of("no prior", 600, dino=0.9, pres=pres_without, div=0.1, clip_i=0.8, context=0.9),
    ]
