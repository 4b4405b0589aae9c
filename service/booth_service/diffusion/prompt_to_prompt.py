"""Prompt-to-Prompt (Hertz et al. 2022): a batch's edited rows take attention maps of their source rows.

The map injected is softmax(q k) of the source row. Where tokens keep their positions, and in self-attention, the source
row's q and k are put into the edited row and the attention kernel runs as ever: that is the same injection without
storing a map, and makes the identities hold bit for bit. Elsewhere the edited row alone is computed from explicit maps:
heads x cells x tokens floats for each of two rows, one layer at a time (10 MB each at Stable Diffusion 1.5's widest
layer and 512 px).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from booth.contract.drawing import PromptEdit
from booth_service.diffusion.alignment import Alignment, align, tokenized, words_of_either
from booth_service.diffusion.local_blend import START, LocalBlend
from booth_service.errors import CannotDraw


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit of a batch: its rows, and for which fractions of the steps, from the first, maps are injected."""

    source: int
    edited: int
    alignment: Alignment
    cross_replace_steps: float
    self_replace_steps: float
    blend: LocalBlend | None = None


@dataclass
class Editor:
    """The edits of one batch, and the step it is at. Rows are counted in the conditional half, of `places` rows.

    `total_steps` answers how many steps there are, once they have begun.
    """

    edits: Sequence[Edit]
    places: int
    latent_size: tuple[int, int]
    total_steps: Callable[[], int]
    step: int = 0

    def injecting(self, is_cross: bool, is_coarse: bool) -> list[Edit]:
        """The edits that inject into a layer at the current step."""
        if not is_cross and not is_coarse:
            return []
        done = self.step / self.total_steps()
        return [
            edit for edit in self.edits if done < (edit.cross_replace_steps if is_cross else edit.self_replace_steps)
        ]

    def is_coarse(self, cells: int) -> bool:
        """A layer has at most half the latents' cells a side.

        Self-attention is injected there alone, as in the authors' code (32 x 32 of 64 x 64): finer layers hold texture,
        which an edit is to have of its own. Blend words' maps are read there too.
        """
        height, width = self.latent_size
        return cells <= -(-height // 2) * -(-width // 2)

    def after_step(self, latents: Tensor) -> Tensor:
        """The latents (rows, channels, height, width) to go on with, local blends applied; the next step begins."""
        self.step += 1
        blends = [(edit, edit.blend) for edit in self.edits if edit.blend]
        if not blends or self.step <= START * self.total_steps():
            return latents
        latents = latents.clone()
        for edit, blend in blends:
            latents[edit.edited] = blend.blended(latents[edit.source], latents[edit.edited])
        return latents


class EditProcessor:
    """The attention of all layers while a batch has edits: diffusers' own but where an edit asks for more."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.plain = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attention of hidden_states (rows, cells, width) to encoder_hidden_states (rows, tokens, width) or itself."""
        is_cross, is_coarse = encoder_hidden_states is not None, self.editor.is_coarse(hidden_states.shape[1])
        injecting = self.editor.injecting(is_cross, is_coarse)
        reading = [edit for edit in self.editor.edits if edit.blend and is_cross and is_coarse]
        if not injecting and not reading:
            output: Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return output
        query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
        first = len(query) - self.editor.places  # guidance puts the unconditional half before the conditional one
        explicit: dict[int, Tensor] = {}
        for edit in self.editor.edits:
            source, edited = first + edit.source, first + edit.edited
            injects, reads = edit in injecting, edit in reading
            moves = is_cross and injects and not edit.alignment.keeps_positions
            if moves or reads:
                source_map, edited_map = _map(attn, query[source], key[source]), _map(attn, query[edited], key[edited])
                if injects:
                    edited_map = edit.alignment.injected(source_map, edited_map)
                if edit.blend and reads:
                    edit.blend.read(source_map, edited_map)
                if moves:
                    explicit[edited] = edited_map @ value[edited].float()
            if injects and not moves:
                query[edited], key[edited] = query[source], key[source]
        attended = scaled_dot_product_attention(query, key, value)
        for row, its_own in explicit.items():
            attended[row] = its_own.to(attended.dtype)
        return _output(attn, attended)


def edit_of(
    tokenizers: Sequence[Any], prompt: str, asked: PromptEdit, place: int, latent_size: tuple[int, int]
) -> Edit:
    """The edit to `prompt` whose source is drawn at a row of the batch, and the edited picture at the next one.

    Raises CannotDraw, naming word or prompt and the remedy, where the prompts cannot be aligned.
    """
    source, edited = tokenized(tokenizers, asked.source_prompt), tokenized(tokenizers, prompt)
    return Edit(
        source=place,
        edited=place + 1,
        alignment=align(source, edited, asked),
        cross_replace_steps=asked.cross_replace_steps,
        self_replace_steps=asked.self_replace_steps,
        blend=LocalBlend(*words_of_either(source, edited, asked.blend), latent_size) if asked.blend else None,
    )


@contextmanager
def edited_attention(unet: Any, editor: Editor | None) -> Iterator[None]:
    """The UNet's attention takes the editor's edits, if there are any; afterwards it is as it was.

    Raises CannotDraw where the model's attention is not the plain kind that edits are made for.
    """
    if editor is None:
        yield
        return
    own = unet.attn_processors
    others = {type(processor).__name__ for processor in own.values()} - {AttnProcessor2_0.__name__}
    special = [name for name, layer in unet.named_modules() if isinstance(layer, Attention) and not _is_plain(layer)]
    if others or special:
        raise CannotDraw(
            f"edits need plain attention, and this base model's has {', '.join(sorted(others) or special[:1])}: draw "
            f"without `edit`"
        )
    try:
        unet.set_attn_processor(EditProcessor(editor))
        yield
    finally:
        unet.set_attn_processor(own)


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.residual_connection)
    return not any(extras) and attn.rescale_output_factor == 1


def _projected(attn: Any, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (rows, heads, cells or tokens, width of a head), as AttnProcessor2_0 makes them."""
    context = hidden_states if context is None else context
    query, key, value = (
        projected.view(len(projected), -1, attn.heads, projected.shape[-1] // attn.heads).transpose(1, 2)
        for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
    )
    return query, key, value


def _map(attn: Any, query: Tensor, key: Tensor) -> Tensor:
    """One row's attention (heads, cells, tokens) in fp32, whatever the model computes in."""
    scores: Tensor = attn.scale * query.float() @ key.float().transpose(-1, -2)
    return scores.softmax(-1)


def _output(attn: Any, attended: Tensor) -> Tensor:
    """What AttnProcessor2_0 makes of (rows, heads, cells, width of a head)."""
    linear, dropout = attn.to_out
    output: Tensor = dropout(linear(attended.transpose(1, 2).flatten(2)))
    return output
