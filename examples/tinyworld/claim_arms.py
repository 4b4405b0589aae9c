"""The arms that the claims compare: one setting each, all else equal, on every subject of tinyworld.

What eight subjects and one seed took on two cores, two cells at a time, one thread each (minutes, start-ups included):

    prior                 600 steps, 5 scored, and 64 class images for each     10.0
    no prior              600 steps, 7 scored                                    7.1
    wrong noun, no noun   300 steps, 5 scored, each                              8.2
    frozen text encoder   600 steps, 2 scored                                    7.4
    textual inversion     1,500 steps, 1 scored                                  7.2
    limits                600 steps, 1 scored                                    5.4

In all 45 minutes. Scoring a step is 32 pictures of 8 denoising steps, about 3 s.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from world import CONTEXTS, NOUNS, Subject

from booth.contract.jobs import ScoringOptions

TOKEN = "sks"
PRIOR, NO_PRIOR, FROZEN_TEXT = "prior", "no prior", "frozen text encoder"
CORRECT_NOUN, WRONG_NOUN, NO_NOUN = NO_PRIOR, "wrong noun", "no noun"
INVERSION, LIMITS = "textual inversion", "limits"
SMALL_BUDGETS = (15, 30)
NOUN_POINTS = [*SMALL_BUDGETS, 75, 150, 300]
STEPS, NOUN_STEPS, INVERSION_STEPS = 600, 300, 1_500
IMAGES_PER_CONTEXT, CLASS_IMAGES_SCORED = 2, 16
SAMPLER_STEPS = 8
TRAINING_SCENE = 2  # of limit_templates
TEMPLATES = [f"a photo of {{0}} {{1}} {phrase}" for phrase in CONTEXTS.values()]
WITHOUT_PRIOR = {"prior_loss_weight": 0.0, "num_class_images": 0}


Noun = Literal["correct", "wrong", "none"]


@dataclass(frozen=True)
class Arm:
    """What one arm's cells are trained with and when their weights are scored; step 0 is the frozen base."""

    name: str
    points: list[int]
    dials: dict[str, Any] = field(default_factory=dict)
    noun: Noun = "correct"

    def class_noun(self, subject: Subject) -> str:
        """The noun that the photos are called. A wrong one is the same for a subject in every run."""
        return wrong_noun(subject.noun) if self.noun == "wrong" else subject.noun

    def phrase(self, subject: Subject) -> str:
        """How prompts name the subject."""
        return TOKEN if self.noun == "none" else f"{TOKEN} {self.class_noun(subject)}"

    def changes(self, subject: Subject) -> dict[str, Any]:
        """Dials and options of the subject's cell: contexts, seeds and sampler are equal in every arm, and the noun of
        PRES is the true one."""
        places = [CONTEXTS[context] for context in subject.held_out_contexts]
        scoring = ScoringOptions(
            steps=self.points,
            prompts=self.prompts(subject),
            num_images=IMAGES_PER_CONTEXT,
            num_class_images=CLASS_IMAGES_SCORED,
            num_inference_steps=SAMPLER_STEPS,
            phrase=self.phrase(subject),
            noun=subject.noun,
            unseen=[place for place in places if any(template.endswith(place) for template in self.prompts(subject))],
        )
        has_own_prompts = self.name == INVERSION  # its recipe has templates
        prompt = {} if has_own_prompts else {"instance_prompt": f"a photo of {self.phrase(subject)}"}
        return {**self.dials, "class_noun": self.class_noun(subject), "scoring": scoring, **prompt}

    def prompts(self, subject: Subject) -> list[str]:
        """The templates that are drawn."""
        return limit_templates(subject) if self.name == LIMITS else TEMPLATES


ARMS = {
    arm.name: arm
    for arm in (
        Arm(PRIOR, [0, 75, 150, 300, STEPS], {"steps": STEPS}),
        Arm(NO_PRIOR, [0, *NOUN_POINTS, STEPS], {"steps": STEPS, **WITHOUT_PRIOR}),
        Arm(WRONG_NOUN, NOUN_POINTS, {"steps": NOUN_STEPS, **WITHOUT_PRIOR}, noun="wrong"),
        Arm(NO_NOUN, NOUN_POINTS, {"steps": NOUN_STEPS, **WITHOUT_PRIOR}, noun="none"),
        Arm(FROZEN_TEXT, [300, STEPS], {"steps": STEPS, "train_text_encoder": False}),
        Arm(INVERSION, [INVERSION_STEPS], {"steps": INVERSION_STEPS, "method": "textual_inversion"}, noun="none"),
        Arm(LIMITS, [STEPS], {"steps": STEPS, **WITHOUT_PRIOR}),
    )
}
ARMS_OF_CLAIMS = {
    "prior": (PRIOR, NO_PRIOR),
    "prior-equal-fidelity": (PRIOR, NO_PRIOR),
    "noun": (CORRECT_NOUN, WRONG_NOUN, NO_NOUN),
    "inversion": (PRIOR, INVERSION),
    "text-encoder": (PRIOR, FROZEN_TEXT),
    "limits": (LIMITS,),
}


def is_first_with_its_arms(claim: str, claims: Iterable[str]) -> bool:
    """Whether no claim before it shows the same arms: steps and curves are shown once."""
    return claim == next(each for each in claims if ARMS_OF_CLAIMS[each] == ARMS_OF_CLAIMS[claim])


def shown_name(claim: str, arm: str) -> str:
    """What a claim's tables, curves and pictures call an arm: one arm has two parts to play."""
    return "correct noun" if (claim, arm) == ("noun", CORRECT_NOUN) else arm


def wrong_noun(noun: str) -> str:
    """Another noun of the world, never one of a like shape: animals, dishes and the rest are far apart in NOUNS."""
    return NOUNS[(NOUNS.index(noun) + 3) % len(NOUNS)]


def limit_templates(subject: Subject) -> list[str]:
    """The limits that the paper names, a prompt each: a place that the base has no word for; one where no photo was
    taken, whose colours may enter the subject or which the photos' places may enter; and a photo's own scene."""
    seen, unseen = CONTEXTS[subject.contexts[0]], CONTEXTS[subject.held_out_contexts[0]]
    return [f"a photo of {{0}} {{1}} {place}" for place in ("in the kitchen", unseen, seen)]
