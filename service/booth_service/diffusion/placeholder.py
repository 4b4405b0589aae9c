"""Textual Inversion (Gal et al. 2022): one row of each text encoder's token embedding is trained, and nothing else.

The row is a parameter of its own, so that no weight decay and no moment touches another row, and an optimizer holds a
few KB. Its name says whose row it is, so that whoever has the weights alone can put it back into its tensor.
"""

# V = tokens of the vocabulary;  D = width of a token's embedding;  R = rows;  L = tokens of a prompt

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from booth_service.diffusion.components import Components
from booth_service.diffusion.denoiser import TextConditionedDenoiser, denoiser
from booth_service.errors import BaseModelError

_ROW = "row_"


class PlaceholderEmbedding(nn.Module):
    """Takes the place of a token embedding: the base's `weight` (V, D), frozen, and one row (1, D) that is trained."""

    def __init__(self, embedding: nn.Embedding, token_id: int, initializer_id: int) -> None:
        super().__init__()
        self.weight = embedding.weight.requires_grad_(False)
        self.token_id = token_id
        self.register_parameter(f"{_ROW}{token_id}", nn.Parameter(self.weight[initializer_id][None].clone()))

    @property
    def row(self) -> nn.Parameter:
        """The trained row."""
        return self.get_parameter(f"{_ROW}{self.token_id}")

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (R, L) -> embeddings (R, L, D) in the dtype of `weight`."""
        embedded = F.embedding(input_ids, self.weight)
        return torch.where((input_ids == self.token_id)[..., None], self.row.to(embedded.dtype), embedded)


def inverted(components: Components, token: str, initializer: str) -> TextConditionedDenoiser:
    """The denoiser around the components' own modules, of which only the rows of `token` are trained.

    They begin as those of the last piece of `initializer`. Raises BaseModelError where a tokenizer has no one piece for
    `token`.
    """
    module = denoiser(components, train_text_encoder=True).requires_grad_(False)
    for text_encoder, tokenizer in zip(components.text_encoders, components.tokenizers, strict=True):
        encoder: Any = text_encoder
        of_token, of_initializer = _pieces(tokenizer, token), _pieces(tokenizer, initializer)
        if len(of_token) != 1:
            raise BaseModelError(
                f"{token!r} is {len(of_token)} pieces of a tokenizer of the base model, and has no row"
            )
        embedding = encoder.get_input_embeddings()
        encoder.set_input_embeddings(PlaceholderEmbedding(embedding, of_token[0], of_initializer[-1]))
    return module


def lower_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """What is not trained is held in `dtype`, as it is computed with: half the memory of fp32."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def row_of(name: str) -> tuple[str, int] | None:
    """The name of the whole tensor, and the number of the row that the parameter `name` is of it; None for others."""
    place, _, own = name.rpartition(".")
    number = own.removeprefix(_ROW)
    return (f"{place}.weight", int(number)) if own.startswith(_ROW) and number.isdigit() else None


@torch.no_grad()
def put_in_place(module: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """A module of the base has these trained tensors, whole ones and rows."""
    parameters = dict(module.named_parameters())
    for name, values in trained.items():
        row = row_of(name)
        target = parameters[name] if row is None else parameters[row[0]][row[1]]
        target.copy_(values.view_as(target))


def _pieces(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
