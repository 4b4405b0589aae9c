"""Which token of a source prompt answers to which of an edited one (Hertz et al. 2022, Prompt-to-Prompt).

Mirrors the authors' code (seq_aligner.py, github.com/google/prompt-to-prompt) for a tokenizer of any length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from booth.contract.drawing import PromptEdit
from booth_service.errors import CannotDraw

GAP, MATCH, MISMATCH = 0, 1, -1  # scores of the Needleman-Wunsch alignment, as the authors chose them


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it: token ids, padding included, and the characters each token stands for.

    `spans` are (0, 0) for begin, end and padding; `length` counts the tokens before the padding.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    length: int

    def tokens_of(self, first: int, end: int) -> list[int]:
        """Positions of the tokens that stand for any of the characters first..end; [] where they were cut off."""
        return [place for place, (a, b) in enumerate(self.spans) if a < b and a < end and first < b]

    def words(self) -> list[list[int]]:
        """The token positions of each word, words being what white space divides; [] for those that were cut off."""
        return [self.tokens_of(*match.span()) for match in re.finditer(r"\S+", self.text)]

    def places_of(self, word: str) -> list[int]:
        """Token positions of every occurrence of a word, or of several in a row, upper or lower case.

        [] where it is not in the prompt. Raises CannotDraw where it was cut off.
        """
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, word.split())) + r"(?!\w)"
        matches = list(re.finditer(pattern, self.text, re.IGNORECASE))
        places = sorted({place for match in matches for place in self.tokens_of(*match.span())})
        if matches and not places:
            raise CannotDraw(
                f"the word {word!r} lies beyond the {len(self.ids)} tokens that the model reads of {self.text!r}: "
                f"shorten the prompt"
            )
        return places


@dataclass(frozen=True, eq=False)
class Alignment:
    """How cross-attention maps of an edited row come out of its source's.

    injected = (source @ mapping + edited * own) * factors, with maps (..., cells, tokens), `mapping` (source tokens,
    edited tokens), `own` (edited tokens), 1 where a token has no counterpart, and `factors` (edited tokens).
    """

    mapping: Tensor
    own: Tensor
    factors: Tensor

    @property
    def keeps_positions(self) -> bool:
        """The injected maps are the source's, token for token."""
        same = torch.equal(self.mapping, torch.eye(len(self.own)))
        return same and not self.own.any() and bool((self.factors == 1).all())

    def injected(self, source: Tensor, edited: Tensor) -> Tensor:
        """The edited row's maps while the source's are injected; maps of (..., cells, tokens)."""
        mapping, own, factors = (each.to(source) for each in (self.mapping, self.own, self.factors))
        return (source @ mapping + edited * own) * factors


def tokenized(tokenizers: Sequence[Any], prompt: str) -> TokenizedPrompt:
    """The prompt as pipelines cut and pad it for their text encoders.

    Several encoders' states lie side by side at the same positions, so all tokenizers must divide the prompt alike.
    Raises CannotDraw where they do not.
    """
    first, *others = [_tokenized(tokenizer, prompt) for tokenizer in tokenizers]
    for other in others:
        if (other.spans, other.length) != (first.spans, first.length):
            raise CannotDraw(
                f"this base model's tokenizers divide {prompt!r} into other tokens from one another, so that words "
                f"have no one position: edits need other words, or another base model"
            )
    return first


def _tokenized(tokenizer: Any, prompt: str) -> TokenizedPrompt:
    read = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_offsets_mapping=True,
    )
    spans = tuple((int(first), int(end)) for first, end in read["offset_mapping"])
    return TokenizedPrompt(prompt, tuple(read["input_ids"]), spans, sum(read["attention_mask"]))


def align(source: TokenizedPrompt, edited: TokenizedPrompt, edit: PromptEdit) -> Alignment:
    """The alignment of an edit. Raises CannotDraw, naming word or prompt and the remedy, where there is none."""
    mapping, own = {"replace": _replaced, "refine": _refined, "reweight": _kept}[edit.mode](source, edited)
    if edit.mode == "reweight" and not edit.words:
        raise CannotDraw('mode "reweight" changes nothing without `words`: give words of the prompt with factors')
    factors = torch.ones(len(edited.ids))
    for word, factor in edit.words.items():
        factors[required(edited, word)] = factor
    return Alignment(mapping, own, factors)


def required(prompt: TokenizedPrompt, word: str) -> list[int]:
    """Token positions of a word of the prompt. Raises CannotDraw where it has none."""
    places = prompt.places_of(word)
    if not places:
        raise CannotDraw(f"the word {word!r} is not in the prompt {prompt.text!r}: name words as they stand there")
    return places


def words_of_either(
    source: TokenizedPrompt, edited: TokenizedPrompt, words: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Token positions of the words in both prompts. Raises CannotDraw for a word that is in neither."""
    found: tuple[set[int], set[int]] = (set(), set())
    for word in words:
        both = [prompt.places_of(word) for prompt in (source, edited)]
        if not any(both):
            raise CannotDraw(
                f"the word {word!r} to blend by is neither in {source.text!r} nor in {edited.text!r}: name words as "
                f"they stand there"
            )
        for places, more in zip(found, both, strict=True):
            places.update(more)
    return sorted(found[0]), sorted(found[1])


def _kept(source: TokenizedPrompt, edited: TokenizedPrompt) -> tuple[Tensor, Tensor]:
    if source.ids != edited.ids:
        raise CannotDraw(
            f'mode "reweight" keeps the words, but {source.text!r} and {edited.text!r} differ: give one prompt twice, '
            f'or use mode "replace" or "refine", which take `words` too'
        )
    return torch.eye(len(source.ids)), torch.zeros(len(source.ids))


def _replaced(source: TokenizedPrompt, edited: TokenizedPrompt) -> tuple[Tensor, Tensor]:
    """Word by word; where a word takes another number of tokens, each gets its equal share of the old one's maps."""
    old, new = source.words(), edited.words()
    if len(old) != len(new):
        raise CannotDraw(
            f'mode "replace" swaps words for as many others, but {source.text!r} has {len(old)} words and '
            f'{edited.text!r} has {len(new)}: use mode "refine" to add or leave out words'
        )
    mapping = _frame(source, edited)
    own = torch.zeros(len(edited.ids))
    for from_places, to_places in zip(old, new, strict=True):
        if not from_places:
            own[to_places] = 1  # cut off in the source
        elif len(from_places) == len(to_places):
            mapping[from_places, to_places] = 1
        else:
            for place in to_places:
                mapping[from_places, place] = 1 / len(to_places)
    return mapping, own


def _refined(source: TokenizedPrompt, edited: TokenizedPrompt) -> tuple[Tensor, Tensor]:
    """Tokens that both prompts share, in order, have the source's maps; new ones keep their own."""
    mapping = _frame(source, edited)
    own = torch.zeros(len(edited.ids))
    pairs = needleman_wunsch(source.ids[: source.length], edited.ids[: edited.length])
    for place, counterpart in enumerate(pairs):
        if counterpart is None:
            own[place] = 1
            mapping[:, place] = 0
        else:
            mapping[counterpart, place] = 1
    return mapping, own


def _frame(source: TokenizedPrompt, edited: TokenizedPrompt) -> Tensor:
    """The mapping of begin, end and padding alone; padding answers to padding at the same position, or the first."""
    tokens = len(edited.ids)
    mapping = torch.zeros(tokens, tokens)
    mapping[0, 0] = 1
    mapping[source.length - 1, edited.length - 1] = 1
    for place in range(edited.length, tokens):
        mapping[min(max(place, source.length), tokens - 1), place] = 1
    return mapping


def needleman_wunsch(source: Sequence[int], edited: Sequence[int]) -> list[int | None]:
    """For each of `edited` the position in `source` that it is aligned with, or None.

    Global alignment with gap 0, match 1, mismatch -1; of equal scores a gap in the source goes first, then one in the
    edited sequence, as in the authors' code.
    """
    rows, columns = len(source) + 1, len(edited) + 1
    score = [[0] * columns for _ in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            diagonal = score[i - 1][j - 1] + (MATCH if source[i - 1] == edited[j - 1] else MISMATCH)
            score[i][j] = max(score[i][j - 1] + GAP, score[i - 1][j] + GAP, diagonal)
    pairs: list[int | None] = [None] * len(edited)
    i, j = len(source), len(edited)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1] + GAP:
            j -= 1
        elif score[i][j] == score[i - 1][j] + GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs[j] = i
    return pairs
