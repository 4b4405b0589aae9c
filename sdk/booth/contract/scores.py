"""Scores on the wire: what weights come to in the paper's metrics."""

from booth.contract.base import Record
from booth.contract.jobs import PromptCase


class ScoredPicture(Record):
    """One scored picture: PNG at `key`, drawn of case `case` from `seed`. Cosines lie in [-1, 1].

    `nearest_photo` is the number of the training photo that it is most like, by DINO.
    """

    case: int
    seed: int
    key: str
    bytes: int
    sha256: str
    dino: float | None = None
    clip_i: float | None = None
    clip_t: float | None = None
    nearest_photo: int | None = None
    nearest_dino: float | None = None
    attributes: dict[str, str] = {}


class Score(Record):
    """What one set of weights comes to for one subject (Ruiz et al. 2023, section 4.1); None is what was not measured.

    `step` 0 is the frozen base, drawn with the noun in the subject's place: the floor. `ceiling_*` are the photos among
    themselves. `unseen_dino` is `dino` over prompts whose context no photo shows. `accuracies` are shares of pictures
    whose attribute is what the prompt says, by head. `memorised` are numbers of pictures too like a
    training photo's subject, `repeated` of those that repeat a photo with its scene, asked for or not.
    """

    step: int
    suite: str
    dino: float | None = None
    clip_i: float | None = None
    clip_t: float | None = None
    pres: float | None = None
    div: float | None = None
    unseen_dino: float | None = None
    ceiling_dino: float | None = None
    ceiling_clip_i: float | None = None
    accuracies: dict[str, float] = {}
    memorised: list[int] = []
    repeated: list[int] = []
    warnings: list[str] = []
    cases: list[PromptCase] = []
    pictures: list[ScoredPicture] = []
    class_pictures: list[ScoredPicture] = []

    @property
    def like_a_photo(self) -> list[int]:
        """Numbers of all pictures that a training photo may have been remembered in."""
        return sorted({*self.memorised, *self.repeated})


class StepScore(Record):
    """A score without cases and pictures, as a beat brings it; the whole of it lies at `key`."""

    score: Score
    key: str
    sha256: str
