"""A CLIP tokenizer with a vocabulary of its own: one token for each word of the world, bytes for all else."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from world import ACCESSORY, CONTEXTS, HUES, NOUNS, RARE_TOKENS

MAX_LENGTH = 24
WORDS_OF_PROMPTS = "a an photo of painting drawing picture the and with two on in white black gold toy small big"


def words() -> list[str]:
    """Every word that captions use, and a few that prompts use, sorted."""
    phrases = [*NOUNS, *CONTEXTS.values(), *HUES, *RARE_TOKENS, ACCESSORY, WORDS_OF_PROMPTS]
    return sorted({word for phrase in phrases for word in phrase.split()})


def build(folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt to `folder` and return the tokenizer that reads them.

    Byte-pair encoding is trained until nothing is left to merge, so each word ends as one token, while the 256 byte
    symbols (alone and word-final) still encode any text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([" ".join(words())] * 2, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    symbols = alphabet + [symbol + "</w>" for symbol in alphabet] + ["".join(pair) for pair in pairs]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
