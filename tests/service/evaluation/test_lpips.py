"""LPIPS against the formula stated anew, and the recipe of its weight file."""

import pytest
import torch
from torch.nn import functional

from booth.contract.encoders import LPIPS_TENSORS
from booth_service.errors import EncoderError
from booth_service.evaluation.lpips import (
    CONVOLUTIONS,
    AlexNetLpips,
    BackboneLpips,
    distances,
    from_state_dicts,
)

WIDTHS = (64, 192, 384, 256, 256)
STRIDES, PADDINGS, POOLED_BEFORE = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2)


@pytest.fixture(scope="module")
def published():
    """State dicts under the names that torchvision and LPIPS give them, with random numbers."""
    generator = torch.Generator().manual_seed(0)
    alexnet = {
        name: torch.randn(shape, generator=generator) * 0.05
        for name, shape in LPIPS_TENSORS.items()
        if name.startswith("features.")
    }
    alexnet |= {"classifier.1.weight": torch.zeros(4, 4)}
    lin = {
        f"lin{tap}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for tap, width in enumerate(WIDTHS)
    }
    return alexnet, lin


def plain_lpips(alexnet, lin, a, b):
    """The formula for one pair of pictures (3, H, W) in [-1, 1], position by position."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    hidden = [((side - shift) / scale).unsqueeze(0) for side in (a, b)]
    total = 0.0
    for tap, number in enumerate(CONVOLUTIONS):
        weight, bias = alexnet[f"features.{number}.weight"], alexnet[f"features.{number}.bias"]
        if tap in POOLED_BEFORE:
            hidden = [functional.max_pool2d(side, 3, 2) for side in hidden]
        hidden = [functional.conv2d(side, weight, bias, STRIDES[tap], PADDINGS[tap]).relu() for side in hidden]
        left, right = (functional.normalize(side[0], dim=0) for side in hidden)
        channel_weights = lin[f"lin{tap}.model.1.weight"].view(-1)
        height, width = left.shape[1:]
        for y in range(height):
            for x in range(width):
                total += float((channel_weights * (left[:, y, x] - right[:, y, x]) ** 2).sum()) / (height * width)
    return total


def test_alexnet_s_lpips_is_the_published_formula(published):
    network = AlexNetLpips(from_state_dicts(*published))
    pictures = torch.rand(3, 3, 64, 70, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        taps = network.taps(pictures)
        found = distances([tap[[0, 0]] for tap in taps], [tap[[1, 2]] for tap in taps], network.weights(taps))
    assert [tap.shape[1] for tap in taps] == list(WIDTHS)
    expected = [plain_lpips(*published, pictures[0], pictures[other]) for other in (1, 2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert found[0] > 0


def test_it_is_a_distance(published):
    network = AlexNetLpips(from_state_dicts(*published))
    a, b = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        in_a, in_b = network.taps(a), network.taps(b)
        weights = network.weights(in_a)
        assert distances(in_a, in_a, weights).tolist() == [0]
        assert torch.equal(distances(in_a, in_b, weights), distances(in_b, in_a, weights))


def test_a_backbone_weighs_its_channels_alike():
    class States:
        hidden_states = (torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))

    network = BackboneLpips(lambda pixel_values, output_hidden_states: States)
    taps = network.taps(torch.zeros(1, 3, 8, 8))
    assert [tuple(tap.shape) for tap in taps] == [(1, 2, 1), (1, 2, 2)]
    other = [torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])]
    # (0.6, 0.8) to (1, 0): 0.16 + 0.64; tokens (1, 0) and (0, 1) to (1, 0): 0 and 2, their mean 1; halves of both
    assert distances(taps, other, network.weights(taps)).tolist() == pytest.approx([(0.8 + 1.0) / 2])


def test_the_recipe_takes_what_lpips_needs_and_names_what_is_missing(published):
    alexnet, lin = published
    made = from_state_dicts(alexnet, lin)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == LPIPS_TENSORS
    assert torch.equal(made["lin.2.weight"], lin["lin2.model.1.weight"].flatten())
    assert torch.equal(made["features.8.bias"], alexnet["features.8.bias"])
    with pytest.raises(EncoderError, match=r"lin3.model.1.weight is missing"):
        from_state_dicts(alexnet, {name: lin[name] for name in lin if "lin3" not in name})


def test_weights_of_another_network_are_refused(published):
    made = from_state_dicts(*published)
    with pytest.raises(EncoderError, match=r"no tensor features.10.bias"):
        AlexNetLpips({name: made[name] for name in made if name != "features.10.bias"})
    with pytest.raises(EncoderError, match=r"lin.0.weight has the shape \(3,\)"):
        AlexNetLpips(made | {"lin.0.weight": torch.ones(3)})
