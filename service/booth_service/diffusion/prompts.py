"""Prompts to token ids, whatever the tokenizers' lengths."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def input_ids(tokenizers: Sequence[Any], prompts: list[str]) -> tuple[Tensor, ...]:
    """Token ids for each text encoder, (len(prompts), L_e), padded and cut to its tokenizer's own length L_e."""
    return tuple(
        tokenizer(
            prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        for tokenizer in tokenizers
    )
