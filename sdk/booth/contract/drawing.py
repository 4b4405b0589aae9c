"""How pictures are drawn, on both wires: schedulers by name, and Prompt-to-Prompt edits."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from booth.contract import limits
from booth.contract.base import Request


def _without_controls(text: str) -> str:
    """The text as it is. Raises where it holds what no tokenizer reads and no terminal, XML or SQL text should get.

    Line breaks and tabs are spaces to a tokenizer. Signs for the direction of writing are letters' companions in
    Arabic and Hebrew, and are kept as they are: a prompt is shown in a field of its own, never within other text.
    """
    bad = sorted({f"U+{ord(sign):04X}" for sign in text if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"})
    if bad:
        raise PydanticCustomError(
            "control_characters", "It holds control characters: {signs}", {"signs": ", ".join(bad[:8])}
        )
    return text


SchedulerName = Literal["base", "ddim", "dpmsolver++", "unipc", "euler", "euler_ancestral"]
EditMode = Literal["replace", "refine", "reweight"]
Plain = AfterValidator(_without_controls)
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_PROMPT_CHARS), Plain]
NegativePrompt = Annotated[str, StringConstraints(max_length=limits.MAX_PROMPT_CHARS), Plain]
Word = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_TEXT_CHARS), Plain]
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
