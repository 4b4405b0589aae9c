"""How pictures are drawn, on both wires: schedulers by name, and Prompt-to-Prompt edits."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from booth.contract import limits
from booth.contract.base import Request

SchedulerName = Literal["base", "ddim", "dpmsolver++", "unipc", "euler", "euler_ancestral"]
EditMode = Literal["replace", "refine", "reweight"]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_PROMPT_CHARS)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_TEXT_CHARS)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PromptEdit(Request):
    """Prompt-to-Prompt (Hertz et al. 2022): the picture of `source_prompt`, changed to what the call's prompt says.

    "replace" swaps words for as many others, "refine" adds words, "reweight" keeps the words and multiplies the
    attention to some: `words` gives their factors (it may be used with the other modes too).
    `cross_replace_steps` and `self_replace_steps` are the fractions of the steps, counted from the first, in which the
    source's cross- and self-attention maps are injected. `blend` names words: outside of where they are drawn, the
    source picture stays as it is (local blend).
    """

    source_prompt: Prompt
    mode: EditMode = "replace"
    words: Annotated[dict[Word, Annotated[float, Field(ge=-10, le=10)]], Field(max_length=limits.MAX_EDIT_WORDS)] = {}
    cross_replace_steps: Fraction = 0.8
    self_replace_steps: Fraction = 0.4
    blend: Annotated[list[Word], Field(max_length=limits.MAX_EDIT_WORDS)] = []
