"""The script behind the plan's table, on a UNet small enough for a test."""

import diffusers
import pytest
import torch
from benchmarks.measure_sizes import byte_costs, forward_flop, unet_call
from torch import nn

CONFIG = {
    "in_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
SIDES = (16, 32, 64)


@pytest.fixture(autouse=True)
def default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(sample_size=16, **CONFIG)


def test_bytes_of_a_row_grow_with_its_cells_and_no_faster() -> None:
    """Explicit attention would keep cells x cells numbers for each head; the fused kernel keeps none."""
    calls = [unet_call(CONFIG, side, tokens=7) for side in SIDES]
    cells = [side**2 for side in SIDES]
    small, large = byte_costs(unet, calls[:2], cells[:2]), byte_costs(unet, calls[1:], cells[1:])
    for mode in ("bf16", "autocast"):
        for kind in ("plain", "checkpointed"):
            assert large[mode][kind] == pytest.approx(small[mode][kind], rel=0.01)
        assert small[mode]["checkpointed"] < small[mode]["plain"]
    assert small["bf16"]["plain"] < small["autocast"]["plain"], "norms in fp32 keep more"


def test_flop_count_attention() -> None:
    """Products grow fourfold with four times the cells, attention sixteenfold."""
    first, second, third = forward_flop(unet, [unet_call(CONFIG, side, tokens=7) for side in SIDES])
    assert 4.01 * first < second
    assert second / first < third / second < 16
