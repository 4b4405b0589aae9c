"""Pictures that the encoders learn from and are checked on: identities of the world, seen several times each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from world import CONTEXTS, HUES, NOUNS, PLAIN, Identity, Scene, colour_name, random_identity, render

BASE_MODEL = Path(__file__).parent / "base_model"
TRAINING_SEED, HELD_OUT_SEED = 9_000_000, 9_500_000  # apart from the base model's pictures and the subjects' photos
HAT_SHARE, PLAIN_SHARE = 0.25, 0.12
LABELS = {
    "context": (*CONTEXTS, PLAIN),
    "noun": NOUNS,
    "hat": ("bare", "hat"),
    "colour": tuple(HUES),
}


@dataclass(frozen=True)
class Pictures:
    """Renders of identities: scene number i shows identity i // views. `pixels` is uint8 (N, 3, 64, 64)."""

    scenes: list[Scene]
    views: int
    pixels: Tensor

    def labels(self, head: str) -> Tensor:
        """The number of each picture's label, (N,)."""
        return torch.tensor([LABELS[head].index(label_of(scene, head)) for scene in self.scenes])


def label_of(scene: Scene, head: str) -> str:
    """What a head should say of the scene."""
    return {
        "context": scene.context,
        "noun": scene.noun,
        "hat": "hat" if scene.hat else "bare",
        "colour": colour_name(scene.identity.hue),
    }[head]


def a_view(identity: Identity, noun: str, rng: random.Random) -> Scene:
    """The identity somewhere, in some pose, with a hat or without."""
    context = PLAIN if rng.random() < PLAIN_SHARE else rng.choice(tuple(CONTEXTS))
    return Scene(noun, identity, context, rng.random() < HAT_SHARE, rng.getrandbits(40))


def views_of_identities(identities: int, views: int, first_seed: int) -> list[Scene]:
    """Scenes of random identities, none of them a subject's, nouns in turn; equal seeds give equal scenes."""
    scenes = []
    for number in range(identities):
        rng = random.Random(first_seed + number)
        identity = random_identity(rng)
        scenes += [a_view(identity, NOUNS[number % len(NOUNS)], rng) for _ in range(views)]
    return scenes


def rendered(scenes: Sequence[Scene], views: int) -> Pictures:
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    return Pictures(list(scenes), views, pixels.contiguous())


@torch.no_grad()
def through_autoencoder(pixels: Tensor, batch: int = 64) -> Tensor:
    """uint8 (N, 3, 64, 64) as the base model's autoencoder returns them: what any picture it draws has gone through."""
    vae = AutoencoderKL.from_pretrained(BASE_MODEL / "vae", torch_dtype=torch.float32)
    decoded = [vae.decode(vae.encode(normalised(part)).latent_dist.mean).sample for part in pixels.split(batch)]
    return torch.cat(decoded).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 to [-1, 1], which mean 0.5 and deviation 0.5 come to."""
    return pixels.float().div(127.5).sub(1)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised pictures, a third of them softened, all a little brighter or darker and noisier: as drawn ones are."""
    count = len(pixels)
    seen = normalised(pixels)
    soft = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=generator) * (torch.rand(count, 1, 1, 1, generator=generator) < 0.34)
    seen = torch.lerp(seen, soft, share)
    gain = 1 + 0.06 * torch.randn(count, 1, 1, 1, generator=generator)
    offset = 0.04 * torch.randn(count, 1, 1, 1, generator=generator)
    noise = torch.randn(seen.shape, generator=generator) * 0.05 * torch.rand(count, 1, 1, 1, generator=generator)
    return seen * gain + offset + noise
