"""Prompts to token ids, whatever the tokenizer's length."""

from typing import Any

from torch import Tensor


def input_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids (len(prompts), L), padded and cut to the tokenizer's own length L."""
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    ids: Tensor = tokens.input_ids
    return ids
