"""Byte-pair encoding of the control plane against transformers' own, and the choice of rare tokens."""

from collections import Counter

import pytest
from control_plane import RECIPE, put_file
from hypothesis import given
from hypothesis import strategies as st
from tokenizer import build

from booth.contract.attempts import StoredFile
from booth_service.control.tokens import Tokenizers, Vocabulary, choose_tokens, clip_tokenizer
from booth_service.errors import BaseModelError

TEXTS = [
    "a photo of a sks dog",
    "A Photo  of\ta SKS Dog",
    "xyzzy",
    "dog's toy, isn't it?",
    "caf\u00e9 na\u00efve \u00df \u0130",
    "\u72ac \U0001f436 \u0645\u0631\u062d\u0628\u0627",
    "12345 3.5x",
    "<|startoftext|> <|endoftext|>",
    "$(rm -rf /); 'quoted' \"words\"",
    "",
    "   ",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """transformers' tokenizer of the tinyworld vocabulary, and the folder that it was read from."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return build(folder), folder


def own(folder) -> Vocabulary:
    return Vocabulary(clip_tokenizer((folder / "vocab.json").read_text(), (folder / "merges.txt").read_text()), 24)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_those_of_transformers(clip, text):
    theirs, folder = clip
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert own(folder).pieces(text) == theirs.convert_ids_to_tokens(ids)


@given(text=st.text(max_size=40))
def test_pieces_are_those_of_transformers_for_any_text(clip, text):
    theirs, folder = clip
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert own(folder).pieces(text) == theirs.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_both_ways_of_storing_a_tokenizer_are_read(object_store, clip, names):
    theirs, folder = clip
    names = [*names, "tokenizer_config.json"]
    files = [put_file(object_store, f"tokenizer/{name}", (folder / name).read_bytes()) for name in names]
    vocabulary = Tokenizers(object_store).of(files)
    assert vocabulary.max_length == 24
    assert vocabulary.pieces("a sks dog") == ["a</w>", "sks</w>", "dog</w>"]
    words = " ".join(["dog"] * 23)
    assert vocabulary.overflow(words) == len(theirs(words)["input_ids"]) - 24 == 1


def test_a_base_model_without_tokenizer_files_is_refused(object_store):
    config = StoredFile(path="unet/config.json", key="k", bytes=1, sha256="0" * 64)
    with pytest.raises(BaseModelError, match=r"vocab\.json"):
        Tokenizers(object_store).of([config])


def vocabulary_of(words: list[str]) -> Vocabulary:
    symbols = [*"abcdefghijklmnopqrstuvwxyz", *words, "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    return Vocabulary(clip_tokenizer(str(vocabulary).replace("'", '"'), "#version: 0.2\n"), 24)


def test_rare_tokens_are_short_whole_words_of_the_last_fifth():
    words = [f"common{number}</w>" for number in range(70)] + [
        "part",
        "long</w>",
        "x</w>",
        "a1c</w>",
        "sks</w>",
        "qx</w>",
    ]
    assert vocabulary_of(words).rare_tokens() == ["qx", "sks"]


def test_early_merges_are_not_rare():
    assert "the" not in vocabulary_of(["the</w>"] + [f"word{number}</w>" for number in range(100)]).rare_tokens()


def test_the_token_used_least_is_free():
    vocabulary = vocabulary_of([])
    assert choose_tokens([None], RECIPE, vocabulary, Counter()) == ["sks"]
    assert choose_tokens([None], RECIPE, vocabulary, Counter(sks=2, zwx=1)) == ["zwx"]


def test_no_two_subjects_of_a_job_get_one_token():
    words = [f"common{number}</w>" for number in range(70)] + ["qx</w>", "sks</w>"]
    vocabulary = vocabulary_of(words)
    assert choose_tokens([None, "SKS", None], RECIPE, vocabulary, Counter()) == ["zwx", "SKS", "qx"]
    assert choose_tokens(["dog", None, None], RECIPE, vocabulary, Counter(sks=9)) == ["dog", "zwx", "sks"]
    with pytest.raises(BaseModelError, match="give each subject a token"):
        choose_tokens([None] * 4, RECIPE, vocabulary, Counter())


def test_a_recipe_without_rare_tokens_takes_the_vocabularys():
    plain = RECIPE.model_copy(update={"rare_tokens": []})
    words = [f"common{number}</w>" for number in range(70)] + ["qx</w>"]
    assert choose_tokens([None], plain, vocabulary_of(words), Counter()) == ["qx"]
    with pytest.raises(BaseModelError, match="no rare single token"):
        choose_tokens([None], plain, vocabulary_of([]), Counter())
