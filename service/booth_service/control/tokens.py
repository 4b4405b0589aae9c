"""Identifier tokens as the base model's own tokenizer sees them: how many pieces, and which rare ones are free."""

import json
import threading
from collections import Counter
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from booth.contract.attempts import StoredFile
from booth.contract.models import Recipe
from booth_service.errors import BaseModelError
from booth_service.storage.s3 import ObjectStore

_FOLDER = "tokenizer/"
_WORD_END = "</w>"
_SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
# CLIP's words: contractions, runs of letters, single digits, runs of anything else (openai/CLIP simple_tokenizer.py)
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_RARE_CHARS = 3  # DreamBooth section 3.2: identifiers of up to 3 characters
_RARE_SHARE = 0.8  # ids follow merge order: the last fifth holds the rarest merges


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of one base model."""

    tokenizer: Tokenizer
    max_length: int

    def pieces(self, text: str) -> list[str]:
        """The pieces that the text is read as."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).tokens)

    def overflow(self, text: str) -> int:
        """By how many pieces the text is longer than what the text encoder reads; 0 where it fits."""
        return max(0, len(self.pieces(text)) + len(_SPECIAL_TOKENS) - self.max_length)

    def rare_tokens(self) -> list[str]:
        """Short whole words among the last merges, rarest first."""
        words = self.tokenizer.get_vocab()
        least = len(words) * _RARE_SHARE
        rare = [(number, word.removesuffix(_WORD_END)) for word, number in words.items() if word.endswith(_WORD_END)]
        return [
            word
            for number, word in sorted(rare, reverse=True)
            if number >= least and 2 <= len(word) <= _RARE_CHARS and word.isascii() and word.isalpha()
        ]


class Tokenizers:
    """Reads each base model's tokenizer once from the object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[tuple[str, ...], Vocabulary] = {}
        self._lock = threading.Lock()

    def of(self, files: list[StoredFile]) -> Vocabulary:
        """The vocabulary of a base model with these files. Raises BaseModelError or StorageError."""
        own = {file.path.removeprefix(_FOLDER): file.key for file in files if file.path.startswith(_FOLDER)}
        address = tuple(sorted(own.values()))
        with self._lock:
            if address not in self._known:
                self._known[address] = self._read(own)
            return self._known[address]

    def _read(self, own: dict[str, str]) -> Vocabulary:
        config = json.loads(self._store.get(own["tokenizer_config.json"])) if "tokenizer_config.json" in own else {}
        return Vocabulary(self._tokenizer(own), int(config.get("model_max_length", 77)))

    def _tokenizer(self, own: dict[str, str]) -> Tokenizer:
        if "tokenizer.json" in own:
            return Tokenizer.from_str(self._store.get(own["tokenizer.json"]).decode())
        if "vocab.json" in own and "merges.txt" in own:
            return clip_tokenizer(
                self._store.get(own["vocab.json"]).decode(), self._store.get(own["merges.txt"]).decode()
            )
        raise BaseModelError(
            "the base model's tokenizer folder has neither tokenizer.json nor vocab.json and merges.txt"
        )


def clip_tokenizer(vocab_json: str, merges_txt: str) -> Tokenizer:
    """CLIP's byte-pair encoding from its two files, as transformers reads them."""
    lines = [line for line in merges_txt.splitlines() if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    model = models.BPE(
        vocab=json.loads(vocab_json),
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix=_WORD_END,
        unk_token="<|endoftext|>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([token for token in _SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None])
    return tokenizer


def choose_tokens(asked: list[str | None], recipe: Recipe, vocabulary: Vocabulary, used: Counter[str]) -> list[str]:
    """A token for each subject of a job: the asked one, else the rare one that this tenant's jobs have used least.

    No picked token equals another of the job. The recipe's rare tokens go first, then the vocabulary's. Raises
    BaseModelError where none is left.
    """
    taken = {token.casefold() for token in asked if token is not None}
    chosen = []
    for token in asked:
        if token is None:
            token = _free_token(recipe, vocabulary, used, taken)
            taken.add(token.casefold())
        chosen.append(token)
    return chosen


def _free_token(recipe: Recipe, vocabulary: Vocabulary, used: Counter[str], taken: set[str]) -> str:
    for candidates in (recipe.rare_tokens, vocabulary.rare_tokens()):
        if free := [token for token in candidates if token.casefold() not in taken]:
            return min(free, key=lambda token: used[token])
    raise BaseModelError("no rare single token of the base model's vocabulary is left: give each subject a token")
