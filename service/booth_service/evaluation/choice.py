"""Which step of a run to publish: the best trade-off of subject and prompt fidelity. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from booth.contract.scores import Score

MEMORISED_SHARE = 0.1  # of a step's pictures; chance alone brings a few near a photo


@dataclass(frozen=True)
class Choice:
    """The step to publish and why; None where no score allows a choice."""

    step: int | None
    why: str


@dataclass(frozen=True)
class TradeOff:
    """Both fidelities of a step in [0, 1], and whether its pictures repeat the photos.

    `subject`: DINO between that of the frozen base (0) and that of the photos among themselves (1). `prompt`: the share
    of pictures whose attributes are what the prompt says, where the encoders tell, else CLIP-T; as a part of the frozen
    base's own, which was never drawn to the photos.
    """

    step: int
    subject: float
    prompt: float
    is_memorised: bool

    @property
    def value(self) -> float:
        """Their harmonic mean: neither makes up for the lack of the other."""
        both = self.subject + self.prompt
        return 2 * self.subject * self.prompt / both if both else 0.0


def select_step(scores: Sequence[Score], num_pictures: int) -> Choice:
    """The scored step of the highest trade-off; of equal ones the earlier. `num_pictures` are those of a step's cases.

    A step that repeats the photos loses against any that does not. The frozen base (step 0) is never chosen: it is the
    floor.
    """
    found = trade_offs(scores, num_pictures)
    if not found:
        return Choice(None, "no step of the run has a score")
    honest = [each for each in found if not each.is_memorised]
    best = max(honest or found, key=lambda each: (each.value, -each.step))
    why = (
        f"the best trade-off {best.value:.3f} of subject fidelity {best.subject:.3f} and prompt fidelity "
        f"{best.prompt:.3f}, among steps {', '.join(str(each.step) for each in found)}"
    )
    if memorised := [str(each.step) for each in found if each.is_memorised]:
        lost = f"pictures of steps {', '.join(memorised)}" if honest else "those of all steps"
        why += f"; {lost} repeat the photos"
    if not any(score.step == 0 for score in scores):
        why += "; without the frozen base as floor"
    return Choice(best.step, why)


def trade_offs(scores: Sequence[Score], num_pictures: int) -> list[TradeOff]:
    """The trade-off of each step of the run, in order, beside the frozen base's score where that is among them."""
    floor = next((score for score in scores if score.step == 0), None)
    own = sorted((score for score in scores if score.step and score.dino is not None), key=lambda score: score.step)
    return [
        TradeOff(score.step, _subject(score, floor), _prompt(score, floor, own), _is_memorised(score, num_pictures))
        for score in own
    ]


def is_only_worse(found: Sequence[TradeOff], patience: int) -> bool:
    """True where the last `patience` steps each had a lower trade-off than the best before them."""
    if patience < 1 or len(found) <= patience:
        return False
    best = max(each.value for each in found[:-patience])
    return all(each.value < best for each in found[-patience:])


def _subject(score: Score, floor: Score | None) -> float:
    low = floor.dino if floor is not None and floor.dino is not None else 0.0
    high = 1.0 if score.ceiling_dino is None else score.ceiling_dino
    assert score.dino is not None
    return _share(score.dino - low, high - low)


def _prompt(score: Score, floor: Score | None, own: Sequence[Score]) -> float:
    reached = _followed(score)
    at_best = _followed(floor) if floor is not None else max(_followed(each) for each in own)
    return _share(reached, at_best)


def _followed(score: Score) -> float:
    if score.accuracies:
        return sum(score.accuracies.values()) / len(score.accuracies)
    return score.clip_t or 0.0


def _is_memorised(score: Score, num_pictures: int) -> bool:
    is_above = score.ceiling_dino is not None and score.dino is not None and score.dino > score.ceiling_dino
    return is_above or len(score.memorised) > MEMORISED_SHARE * num_pictures


def _share(part: float, whole: float) -> float:
    """part / whole within [0, 1]; 1 where there is nothing to reach."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 1.0
