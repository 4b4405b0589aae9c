"""Local blend: masks out of maps of any size, and what they keep."""

import pytest
import torch

from booth_service.diffusion.local_blend import LocalBlend, level_size, mask_of

HEADS, TOKENS = 2, 6


@pytest.mark.parametrize(
    ("latent_size", "cells", "size"),
    [((64, 64), 256, (16, 16)), ((64, 64), 4096, (64, 64)), ((96, 64), 24, (6, 4)), ((13, 9), 35, (7, 5))],
)
def test_a_level_is_the_latents_halved(latent_size: tuple[int, int], cells: int, size: tuple[int, int]) -> None:
    assert level_size(latent_size, cells) == size


def test_no_level_is_named() -> None:
    with pytest.raises(ValueError, match="no level of 64 x 64 latents has 100 cells"):
        level_size((64, 64), 100)


def test_a_mask_is_where_a_map_is_strong_and_a_cell_around() -> None:
    maps = torch.full((1, 1, 6, 8), 0.1)
    maps[0, 0, 2, 3] = 1.0
    mask = mask_of(maps, (12, 16))[0, 0]
    assert mask.nonzero().amin(0).tolist() == [2, 4]
    assert mask.nonzero().amax(0).tolist() == [7, 9]
    assert mask.sum() == 6 * 6


def test_outside_of_the_words_in_either_picture_the_source_stays() -> None:
    """On 8 x 12 latents, read at 4 x 6: the old word top left, the new one bottom right, another one everywhere."""
    old, new = torch.zeros(HEADS, 24, TOKENS), torch.zeros(HEADS, 24, TOKENS)
    old[:, 0, 2] = 1.0
    new[:, 23, 3] = 1.0
    old[..., 4] = new[..., 4] = 5.0
    source, edited = torch.zeros(3, 8, 12), torch.ones(3, 8, 12)
    blend = LocalBlend([2], [3], (8, 12))
    blend.read(old, new)
    blend.read(old[:, :6], new[:, :6])  # a coarser layer, which has no say where there is a finer one
    blended = blend.blended(source, edited)
    wanted = torch.zeros(3, 8, 12)
    wanted[:, :4, :4] = 1
    wanted[:, 4:, 8:] = 1
    assert torch.equal(blended, wanted)


@pytest.mark.parametrize(
    ("side", "levels", "read"),
    [(64, (32, 16, 8), 16), (128, (64, 32), 32), (16, (8, 4), 8), (8, (4, 2), 4)],
    ids=["sd", "sdxl", "tinyworld", "less"],
)
def test_masks_are_read_where_maps_mean_most(side: int, levels: tuple[int, ...], read: int) -> None:
    blend = LocalBlend([1], [1], (side, side))
    for level in levels:
        maps = torch.zeros(HEADS, level * level, TOKENS)
        maps[:, 0 if level == read else -1, 1] = 1.0
        blend.read(maps, maps)
    blended = blend.blended(torch.zeros(1, side, side), torch.ones(1, side, side))
    assert blended[0, 0, 0] == 1
    assert blended[0, -1, -1] == 0


def test_a_word_of_one_prompt_alone_blends_by_that() -> None:
    maps = torch.zeros(HEADS, 16, TOKENS)
    maps[:, 0, 1] = 1.0
    for places, others in (([1], []), ([], [1])):
        blend = LocalBlend(places, others, (4, 4))
        blend.read(maps, maps)
        changed = blend.blended(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
        assert changed.sum() == 4


def test_maps_add_up_over_layers_and_steps() -> None:
    blend = LocalBlend([1], [1], (4, 4))
    for cell, strength in ((0, 1.0), (15, 0.2), (15, 0.2)):
        maps = torch.zeros(HEADS, 16, TOKENS)
        maps[:, cell, 1] = strength
        blend.read(maps, maps)
    assert blend.blended(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))[0, 3, 3] == 1
