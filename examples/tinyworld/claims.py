"""The paper's claims as verdicts on scores: pure. A claim that does not hold is told like one that does.

Every figure is a mean over subjects (over seeds first), every comparison a paired difference with its 95 % bootstrap
interval over subjects. A bound is checked against the mean; only where both ends of the interval fall on the same side
of it is that settled, and a claim of which all is met and not all is settled is told as such.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from claim_arms import (
    CORRECT_NOUN,
    FROZEN_TEXT,
    IMAGES_PER_CONTEXT,
    INVERSION,
    LIMITS,
    NO_NOUN,
    NO_PRIOR,
    PRIOR,
    SMALL_BUDGETS,
    TRAINING_SCENE,
    WRONG_NOUN,
)
from world import CONTEXTS, SUBJECTS

from booth.contract.evaluation import ReportRow
from booth_service.evaluation.intervals import Interval, bootstrap, over_subjects, paired_difference

SEED = 7  # of the bootstrap
Rows = Sequence[ReportRow]
Figures = dict[str, float]  # by subject


@dataclass(frozen=True)
class Finding:
    """One comparison. `holds` is None where nothing is asserted of it and it is only told; `is_settled` where the whole
    interval says the same."""

    what: str
    interval: Interval
    asked: str = ""
    holds: bool | None = None
    is_settled: bool = True


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: of its findings, and None where its cells were not run."""

    claim: str
    findings: list[Finding]

    @property
    def holds(self) -> bool | None:
        asserted = [finding.holds for finding in self.findings if finding.holds is not None]
        return all(asserted) if asserted else None

    @property
    def is_settled(self) -> bool:
        return all(finding.is_settled for finding in self.findings)


def figures(rows: Rows, arm: str, step: int, metric: str) -> Figures:
    """A metric of one arm at one step by subject, each its mean over seeds; subjects without it are left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.arm == arm and row.score.step == step and (value := value_of(row, metric)) is not None:
            found.setdefault(row.subject, []).append(value)
    return over_subjects(found)


def value_of(row: ReportRow, metric: str) -> float | None:
    """A metric by its name in Score, or an accuracy by its head's name, such as "context"."""
    if metric in row.score.accuracies:
        return row.score.accuracies[metric]
    value: float | None = getattr(row.score, metric, None)
    return value


def steps_of(rows: Rows, arm: str) -> list[int]:
    """The scored steps of an arm in order."""
    return sorted({row.score.step for row in rows if row.arm == arm})


def last_step(rows: Rows, arm: str) -> int:
    return max(steps_of(rows, arm), default=-1)


# ---- the claims -----------------------------------------------------------------------------------------------------


def prior_preservation(rows: Rows) -> Verdict:
    """Table 3 at equal steps: without the prior the class turns into the subject, with it hardly."""
    claim = "Prior preservation keeps the class, at equal steps (Table 3)"
    step = min(last_step(rows, PRIOR), last_step(rows, NO_PRIOR))
    if step < 0:
        return Verdict(claim, [])
    findings = []
    for arm, asked, holds in (
        (NO_PRIOR, ">= 0.4", lambda mean: mean >= 0.4),
        (PRIOR, "<= 0.25", lambda mean: mean <= 0.25),
    ):
        after, before = figures(rows, arm, step, "pres"), figures(rows, arm, 0, "pres")
        findings += compared(f"PRES, {arm} at {step} steps - base", after, before, asked, holds)
    for metric, name, asked, holds in (
        ("div", "DIV", "> 0", lambda mean: mean > 0),
        ("dino", "subject fidelity", "< 0", lambda mean: mean < 0),
        ("clip_i", "CLIP-I", "", None),
        ("context", "context right", "", None),
    ):
        with_prior, without = figures(rows, PRIOR, step, metric), figures(rows, NO_PRIOR, step, metric)
        findings += compared(f"{name} at {step} steps, {PRIOR} - {NO_PRIOR}", with_prior, without, asked, holds)
    for earlier in sorted(set(steps_of(rows, PRIOR)) & set(steps_of(rows, NO_PRIOR)) - {0, step}):
        for metric, name in (("dino", "subject fidelity"), ("pres", "PRES"), ("div", "DIV")):
            with_prior, without = figures(rows, PRIOR, earlier, metric), figures(rows, NO_PRIOR, earlier, metric)
            findings += compared(f"{name} at {earlier} steps, {PRIOR} - {NO_PRIOR}", with_prior, without)
    return Verdict(claim, findings)


def prior_at_equal_fidelity(rows: Rows) -> Verdict:
    """The same where both arms are as close to the subject: budgets differ, since the prior takes half of each step."""
    at_equal = {metric: ({}, {}) for metric in ("pres", "div")}
    for subject in sorted({row.subject for row in rows}):
        own = [row for row in rows if row.subject == subject]
        both = [curve(own, arm) for arm in (PRIOR, NO_PRIOR)]
        if not all(both):
            continue
        fidelity = min(max(point["dino"] for point in each) for each in both)
        for metric, sides in at_equal.items():
            for side, each in zip(sides, both, strict=True):
                if (value := where_fidelity_is(each, fidelity, metric)) is not None:
                    side[subject] = value
    claims = {"pres": ("PRES", "< 0", lambda mean: mean < 0), "div": ("DIV", "> 0", lambda mean: mean > 0)}
    findings = []
    for metric, (name, asked, holds) in claims.items():
        findings += compared(f"{name} at equal fidelity, {PRIOR} - {NO_PRIOR}", *at_equal[metric], asked, holds)
    return Verdict("Prior preservation keeps the class, at equal subject fidelity", findings)


def class_noun(rows: Rows) -> Verdict:
    """Table 4: correct > wrong > none. Asserted of the mean over the small budgets: correct above either; all else is
    told by steps, wrong against none above all."""
    correct, wrong, none = (small_budget(rows, arm) for arm in (CORRECT_NOUN, WRONG_NOUN, NO_NOUN))
    budgets = " and ".join(map(str, SMALL_BUDGETS))
    findings = []
    for name, a, b in (("correct - none", correct, none), ("correct - wrong", correct, wrong)):
        findings += compared(f"subject fidelity, mean of {budgets} steps, {name}", a, b, "> 0", lambda mean: mean > 0)
    for step in steps_of(rows, WRONG_NOUN):
        correct, wrong, none = (figures(rows, arm, step, "dino") for arm in (CORRECT_NOUN, WRONG_NOUN, NO_NOUN))
        findings += compared(f"subject fidelity at {step} steps, correct - none", correct, none)
        findings += compared(f"subject fidelity at {step} steps, correct - wrong", correct, wrong)
        findings += compared(f"subject fidelity at {step} steps, wrong - none", wrong, none)
    return Verdict("The class noun helps: correct above wrong and above none at a small budget (Table 4)", findings)


def small_budget(rows: Rows, arm: str) -> Figures:
    """Subject fidelity as the mean over the small budgets, of the subjects that were scored at each."""
    points = [figures(rows, arm, step, "dino") for step in SMALL_BUDGETS]
    everywhere = set.intersection(*(set(point) for point in points))
    return {subject: sum(point[subject] for point in points) / len(points) for subject in everywhere}


def over_textual_inversion(rows: Rows) -> Verdict:
    """Table 1, each method at the end of its own recipe."""
    ours, theirs = last_step(rows, PRIOR), last_step(rows, INVERSION)
    findings = compared(
        f"subject fidelity, DreamBooth ({ours} steps) - Textual Inversion ({theirs} steps)",
        figures(rows, PRIOR, ours, "dino"),
        figures(rows, INVERSION, theirs, "dino"),
        ">= 0.3",
        lambda mean: mean >= 0.3,
    )
    if findings:  # of one method alone there is no verdict
        ours_right, theirs_right = figures(rows, PRIOR, ours, "context"), figures(rows, INVERSION, theirs, "context")
        findings += alone("context right, DreamBooth", ours_right, ">= 0.9", lambda mean: mean >= 0.9)
        findings += alone("context right, Textual Inversion", theirs_right)
    return Verdict("DreamBooth is closer to the subject than Textual Inversion (Table 1)", findings)


def text_encoder(rows: Rows) -> Verdict:
    """The text encoder trained too, at equal steps: what it gives, and what it costs."""
    step = min(last_step(rows, PRIOR), last_step(rows, FROZEN_TEXT))
    findings = []
    for metric, name, asked, holds in (
        ("dino", "subject fidelity", "> 0", lambda mean: mean > 0),
        ("unseen_dino", "subject fidelity in unseen contexts", "", None),
        ("context", "context right", "", None),
        ("clip_t", "CLIP-T", "", None),
        ("pres", "PRES", "", None),
    ):
        trained, frozen = figures(rows, PRIOR, step, metric), figures(rows, FROZEN_TEXT, step, metric)
        findings += compared(f"{name} at {step} steps, text encoder trained - frozen", trained, frozen, asked, holds)
    return Verdict("Training the text encoder too brings the subject closer", findings)


def memorisation(rows: Rows) -> Verdict:
    """A prompt like a photo's scene is answered with that photo's like, and the score says so."""
    warned = {row.subject: float(warns_of_the_scene(row)) for row in rows if row.arm == LIMITS and row.score.step > 0}
    findings = alone("share of subjects whose score warns of it", warned, "> 0", lambda mean: mean > 0)
    return Verdict("A prompt like the training scene repeats a photo, and the warning fires", findings)


def warns_of_the_scene(row: ReportRow) -> bool:
    """Whether a picture of the training scene is too like a photo, or their mean fidelity above the photos' own."""
    (subject,) = [subject for subject in SUBJECTS if subject.name == row.subject]
    of_scene = any(number // IMAGES_PER_CONTEXT == TRAINING_SCENE for number in row.score.like_a_photo)
    return of_scene or any(CONTEXTS[subject.contexts[0]] in warning for warning in row.score.warnings)


CLAIMS: dict[str, Callable[[Rows], Verdict]] = {
    "prior": prior_preservation,
    "prior-equal-fidelity": prior_at_equal_fidelity,
    "noun": class_noun,
    "inversion": over_textual_inversion,
    "text-encoder": text_encoder,
    "limits": memorisation,
}


# ---- comparisons ----------------------------------------------------------------------------------------------------

Bound = Callable[[float], bool] | None


def compared(what: str, a: Figures, b: Figures, asked: str = "", holds: Bound = None) -> list[Finding]:
    """The paired difference a - b as one finding, or none where no subject has both."""
    if not a.keys() & b.keys():
        return []
    return [judged(what, paired_difference(a, b, seed=SEED), asked, holds)]


def alone(what: str, values: Figures, asked: str = "", holds: Bound = None) -> list[Finding]:
    """A mean over subjects as one finding, or none where there is no subject."""
    return [judged(what, bootstrap(values, seed=SEED), asked, holds)] if values else []


def judged(what: str, interval: Interval, asked: str, holds: Bound) -> Finding:
    if holds is None:
        return Finding(what, interval)
    ends = [end for end in (interval.low, interval.high) if end is not None]
    does_hold = holds(interval.mean)
    return Finding(what, interval, asked, does_hold, all(holds(end) == does_hold for end in ends))


def curve(rows: Rows, arm: str) -> list[Figures]:
    """dino, pres and div of one subject's arm by step, means over seeds; steps that lack one are left out."""
    points = []
    for step in steps_of(rows, arm):
        point = {metric: list(figures(rows, arm, step, metric).values()) for metric in ("dino", "pres", "div")}
        if all(point.values()):
            points.append({metric: values[0] for metric, values in point.items()})
    return points


def where_fidelity_is(points: Sequence[Figures], fidelity: float, metric: str) -> float | None:
    """The metric where the curve first reaches the fidelity, on the line between its two points there."""
    for before, after in pairwise(points):
        if before["dino"] <= fidelity <= after["dino"]:
            width = after["dino"] - before["dino"]
            share = (fidelity - before["dino"]) / width if width else 1.0
            return before[metric] + share * (after[metric] - before[metric])
    return None
