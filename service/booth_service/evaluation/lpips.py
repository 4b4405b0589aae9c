"""LPIPS, version 0.1 (Zhang et al., CVPR 2018): how far two pictures are from each other in a network's features.

The weights of kind "lpips-alexnet" are one file, lpips.safetensors, fp32:
    features.{0,3,6,8,10}.{weight,bias}   the convolutions of AlexNet, by torchvision's own names
    lin.{0,1,2,3,4}.weight                (C,) one weight for each channel of each tap
It is made once, from what torchvision and the lpips package publish, where those are at hand:

    import lpips, torch, torchvision
    from safetensors.torch import save_file
    from booth_service.evaluation.lpips import from_state_dicts
    alexnet = torchvision.models.alexnet(weights="IMAGENET1K_V1").state_dict()
    lin = lpips.LPIPS(net="alex", version="0.1").state_dict()        # or torch.load(".../weights/v0.1/alex.pth")
    save_file(from_state_dicts(alexnet, lin), "lpips.safetensors")
"""

# N = pictures or pairs, C = channels of a tap, H, W = its positions, T = tokens of a transformer

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from booth.contract.encoders import LPIPS_TENSORS
from booth_service.errors import EncoderError

EPSILON = 1e-10  # LPIPS's own, added to a norm
SHIFT = (-0.030, -0.088, -0.188)  # LPIPS's scaling layer: ImageNet's mean and deviation for pictures in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
CONVOLUTIONS = (0, 3, 6, 8, 10)
_TAPS = (1, 4, 7, 9, 11)  # the ReLU behind each convolution


def alexnet_features() -> nn.Sequential:
    """AlexNet's convolutional part, layer by layer as torchvision numbers it, without weights yet."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


class AlexNetLpips(nn.Module):
    """LPIPS's own: five taps of AlexNet, each channel with its learned weight."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, shape in LPIPS_TENSORS.items():
            if name not in weights:
                raise EncoderError(f"it has no tensor {name}; make it with evaluation.lpips.from_state_dicts")
            if tuple(weights[name].shape) != shape:
                raise EncoderError(f"{name} has the shape {tuple(weights[name].shape)}, and LPIPS's has {shape}")
        self.features = alexnet_features()
        convolutions = [name for name in LPIPS_TENSORS if name.startswith("features.")]
        self.features.load_state_dict({name.removeprefix("features."): weights[name].float() for name in convolutions})
        for tap in range(len(_TAPS)):
            self.register_buffer(f"lin_{tap}", weights[f"lin.{tap}.weight"].float())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def taps(self, pictures: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> five of (N, C, positions), not normalised."""
        hidden = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")
        taken = []
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in _TAPS:
                taken.append(hidden.flatten(2))
        return taken

    def weights(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """A weight for each channel of each tap."""
        return [self.get_buffer(f"lin_{tap}") for tap in range(len(taps))]


class BackboneLpips(nn.Module):
    """The same formula over the hidden states of any vision model of transformers, all channels alike.

    A tap's channels weigh 1 / taps each, so that a deeper network does not say larger distances.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def taps(self, pictures: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> one (N, C, positions) for each hidden state: maps (N, C, H, W) or tokens (N, T, C)."""
        states = self.model(pixel_values=pictures, output_hidden_states=True).hidden_states
        return [state.flatten(2) if state.dim() == 4 else state.transpose(1, 2) for state in states]

    def weights(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """A weight for each channel of each tap."""
        return [torch.full((tap.shape[1],), 1 / len(taps), device=tap.device) for tap in taps]


def distances(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """LPIPS of each pair, (N,): over the taps, the sum of the mean over positions of sum_c w_c (a_c - b_c)^2.

    a, b: taps, each (N, C, positions), made unit vectors over their channels at every position; weights: (C,) each.
    """
    total = torch.zeros(len(a[0]), device=a[0].device)
    for in_a, in_b, weight in zip(a, b, weights, strict=True):
        squared = (unit_channels(in_a) - unit_channels(in_b)) ** 2
        total = total + (squared * weight.view(1, -1, 1)).sum(1).mean(1)
    return total


def unit_channels(tap: Tensor) -> Tensor:
    """Each position's channels divided by their Euclidean norm. (N, C, positions) as given."""
    return tap / (tap.square().sum(1, keepdim=True).sqrt() + EPSILON)


def from_state_dicts(alexnet: Mapping[str, Tensor], lin: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of lpips.safetensors, from torchvision's AlexNet and the linear layers that LPIPS publishes.

    `lin` has lin<tap>.model.1.weight (1, C, 1, 1), as LPIPS's weights/v0.1/alex.pth and its modules name them. Raises
    EncoderError, naming the tensor, where one is missing.
    """
    names = {f"features.{number}.{part}": alexnet for number in CONVOLUTIONS for part in ("weight", "bias")}
    names |= {f"lin{tap}.model.1.weight": lin for tap in range(len(_TAPS))}
    if missing := sorted(name for name, state in names.items() if name not in state):
        raise EncoderError(f"{missing[0]} is missing; give AlexNet's state_dict and that of LPIPS 0.1 for it")
    made = {name: state[name].detach().float() for name, state in names.items() if name.startswith("features.")}
    for tap in range(len(_TAPS)):
        made[f"lin.{tap}.weight"] = lin[f"lin{tap}.model.1.weight"].detach().float().flatten()
    return {name: tensor.contiguous() for name, tensor in made.items()}
