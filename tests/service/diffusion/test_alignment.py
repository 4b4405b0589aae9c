"""Token mappings of Prompt-to-Prompt, with tokenizers of several lengths; words found, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer import MAX_LENGTH, build

from booth.contract.drawing import PromptEdit
from booth_service.diffusion.alignment import (
    Alignment,
    TokenizedPrompt,
    align,
    needleman_wunsch,
    required,
    tokenized,
    words_of_either,
)
from booth_service.errors import CannotDraw


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def read(tokenizer: Any) -> Any:
    return lambda prompt: tokenized([tokenizer], prompt)


def aligned(read: Any, source: str, edited: str, **edit: Any) -> Alignment:
    return align(read(source), read(edited), PromptEdit(source_prompt=source, **edit))


def counterparts(alignment: Alignment) -> list[tuple[int, int]]:
    """(source, edited) of every pair that is mapped."""
    return [(int(i), int(j)) for j, i in alignment.mapping.T.nonzero().tolist()]


def test_words_of_one_token_each_keep_their_positions(read: Any) -> None:
    alignment = aligned(read, "a dog in the snow", "a cat in the snow")
    assert alignment.keeps_positions
    maps = torch.rand(2, 5, MAX_LENGTH)
    assert torch.equal(alignment.injected(maps, torch.rand_like(maps)), maps)


def test_a_word_of_several_tokens_shares_the_old_words_maps(read: Any) -> None:
    """The word "quokka" is six letters to this tokenizer, "dog" one token."""
    edited = read("a quokka in the snow")
    new = edited.places_of("quokka")
    alignment = aligned(read, "a dog in the snow", edited.text)
    assert len(new) > 1
    assert not alignment.keeps_positions
    assert alignment.mapping[2, new].tolist() == [pytest.approx(1 / len(new))] * len(new)
    shift = len(new) - 1
    assert counterparts(alignment)[:2] == [(0, 0), (1, 1)]
    assert [(i, i + shift) for i in (3, 4, 5, 6)] == [pair for pair in counterparts(alignment) if 3 <= pair[0] <= 6][:4]
    assert alignment.mapping.sum(0).tolist()[new[-1] + 1 :] == [1] * (MAX_LENGTH - new[-1] - 1)


def test_several_tokens_give_one_word_the_sum_of_their_maps(read: Any) -> None:
    source = read("a quokka in the snow")
    old = source.places_of("quokka")
    alignment = aligned(read, source.text, "a dog in the snow")
    assert alignment.mapping[old, 2].tolist() == [1.0] * len(old)
    padding = alignment.mapping[:, read("a dog in the snow").length :]
    assert padding.nonzero()[:, 0].min() >= source.length  # padding answers to padding


def test_refine_gives_new_words_their_own_maps_and_shared_ones_the_sources(read: Any) -> None:
    alignment = aligned(read, "a dog in the snow", "a sks dog in the snow wearing a red hat", mode="refine")
    own = alignment.own.nonzero().flatten().tolist()
    assert own == [2, 7, 8, 9, 10]
    pairs = [pair for pair in counterparts(alignment) if pair[1] < 12]
    assert pairs == [(0, 0), (1, 1), (2, 3), (3, 4), (4, 5), (5, 6), (6, 11)]
    source, edited = torch.rand(3, MAX_LENGTH), torch.rand(3, MAX_LENGTH)
    injected = alignment.injected(source, edited)
    assert torch.equal(injected[:, own], edited[:, own])
    assert torch.equal(injected[:, [3, 6, 11]], source[:, [2, 5, 6]])


def test_refine_may_leave_words_out(read: Any) -> None:
    alignment = aligned(read, "a red dog in the snow", "a dog", mode="refine")
    assert not alignment.own.any()
    assert counterparts(alignment)[:4] == [(0, 0), (1, 1), (3, 2), (7, 3)]


def test_reweight_multiplies_the_maps_of_every_occurrence(read: Any) -> None:
    alignment = aligned(read, "a dog and a dog", "a dog and a dog", mode="reweight", words={"Dog": 3.0})
    assert alignment.factors.tolist() == [1, 1, 3, 1, 1, 3] + [1] * (MAX_LENGTH - 6)
    assert not alignment.keeps_positions
    maps = torch.rand(2, MAX_LENGTH)
    assert torch.equal(alignment.injected(maps, torch.rand_like(maps)), maps * alignment.factors)


def test_factors_go_with_the_other_modes_too(read: Any) -> None:
    alignment = aligned(read, "a dog", "a red dog", mode="refine", words={"red": 2.0})
    assert alignment.factors[2] == 2
    assert alignment.own[2] == 1


def test_prompts_of_any_length_and_tokenizers_of_any_are_aligned(tokenizer: Any, tmp_path: Path) -> None:
    wide = build(tmp_path / "wide")
    wide.model_max_length = 50
    for each, tokens in ((tokenizer, MAX_LENGTH), (wide, 50)):
        long = tokenized([each], "dog " * 60)
        assert (len(long.ids), long.length) == (tokens, tokens)
        for mode in ("replace", "refine"):
            edit = PromptEdit(source_prompt=long.text, mode=mode)
            assert align(long, long, edit).keeps_positions
            assert align(tokenized([each], "a dog"), long, PromptEdit(source_prompt="a dog", mode="refine")).own.any()


@pytest.mark.parametrize(
    ("source", "edited", "pairs"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
        ([1, 2, 3], [1, 9, 2, 3], [0, None, 1, 2]),
        ([1, 9, 2, 3], [1, 2, 3], [0, 2, 3]),
        ([1, 2], [3, 4], [None, None]),
        ([1, 2, 1, 3], [1, 3], [0, 3]),
        ([], [1], [None]),
    ],
)
def test_needleman_wunsch(source: list[int], edited: list[int], pairs: list[int | None]) -> None:
    assert needleman_wunsch(source, edited) == pairs


def test_words_are_found_whole_in_any_case_and_in_a_row(read: Any) -> None:
    prompt = read("A Dog, a hotdog and a sks  dog")
    assert prompt.places_of("dog") == [2, prompt.length - 2]
    assert prompt.places_of("sks dog") == [prompt.length - 3, prompt.length - 2]
    assert prompt.places_of("do") == []
    assert prompt.places_of("d.g") == []
    assert words_of_either(prompt, read("a cat"), ["sks", "cat"]) == ([prompt.length - 3], [2])


@pytest.mark.parametrize(
    ("source", "edited", "edit", "message"),
    [
        ("a dog", "a sks dog", {}, "'a dog' has 2 words and 'a sks dog' has 3: use mode \"refine\""),
        ("a dog", "a cat", {"mode": "reweight", "words": {"cat": 2.0}}, "'a dog' and 'a cat' differ"),
        ("a dog", "a dog", {"mode": "reweight"}, "changes nothing without `words`"),
        ("a dog", "a cat", {"words": {"dog": 2.0}}, "the word 'dog' is not in the prompt 'a cat'"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name(
    read: Any, source: str, edited: str, edit: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotDraw) as error:
        aligned(read, source, edited, **edit)
    assert message in error.value.detail


def test_words_that_are_nowhere_or_cut_off_are_refused_by_name(read: Any) -> None:
    with pytest.raises(CannotDraw, match="'bird' to blend by is neither in 'a dog' nor in 'a cat'"):
        words_of_either(read("a dog"), read("a cat"), ["bird"])
    with pytest.raises(CannotDraw, match=f"'cat' lies beyond the {MAX_LENGTH} tokens"):
        required(read("dog " * 30 + "cat"), "cat")


def test_tokenizers_that_divide_a_prompt_differently_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    other = build(tmp_path / "other")
    other.add_tokens(["red dog"])
    assert isinstance(tokenized([tokenizer, other], "a cat"), TokenizedPrompt)
    with pytest.raises(CannotDraw, match="divide 'a red dog' into other tokens"):
        tokenized([tokenizer, other], "a red dog")
