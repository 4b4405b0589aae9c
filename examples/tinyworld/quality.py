"""How well the base model draws what it is asked: judged by a small classifier trained on the same world.

    python examples/tinyworld/quality.py examples/tinyworld/base_model

Prints the share of generated pictures (4 of each noun in each context, seeds that training never used) in which the
classifier sees the asked noun and the asked context, and the same share for real renders, which bounds it.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from world import CONTEXTS, NOUNS, PLAIN, random_scene, render

PICTURES, STEPS, BATCH = 6_000, 700, 64
HELD_OUT_SEED = 5_000_000  # renders and samples from here on were never trained on
PER_PROMPT = 4


class Classifier(nn.Module):
    """Noun and context logits from (B, 3, 64, 64) pixels in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.noun = nn.Linear(128 * 16, len(NOUNS))
        self.context = nn.Linear(128 * 16, len(CONTEXTS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(pixels)
        return self.noun(features), self.context(features)


def to_pixels(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def labelled(first_seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Renders with their noun and context numbers; scenes before a plain wall are left out."""
    scenes = [scene for scene in map(random_scene, range(first_seed, first_seed + count)) if scene.context != PLAIN]
    nouns = torch.tensor([NOUNS.index(scene.noun) for scene in scenes])
    contexts = torch.tensor([list(CONTEXTS).index(scene.context) for scene in scenes])
    return to_pixels([np.asarray(render(scene)) for scene in scenes]), nouns, contexts


def train_classifier() -> Classifier:
    torch.manual_seed(3)
    pixels, nouns, contexts = labelled(0, PICTURES)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(STEPS):
        index = torch.randint(0, len(pixels), (BATCH,))
        seen = pixels[index] + 0.08 * torch.randn(BATCH, *pixels.shape[1:])
        noun, context = model(seen)
        loss = F.cross_entropy(noun, nouns[index]) + F.cross_entropy(context, contexts[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def shares(model: Classifier, pixels: Tensor, nouns: Tensor, contexts: Tensor) -> dict[str, float]:
    """Share of pictures with the right noun, and with the right context."""
    noun, context = model(pixels)
    right = {"noun": noun.argmax(1) == nouns, "context": context.argmax(1) == contexts}
    return {name: round(hits.float().mean().item(), 4) for name, hits in right.items()}


def generate(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """PER_PROMPT pictures of every noun in every context, by the folder's own recipe."""
    recipe = json.loads((folder / "booth_recipe.json").read_text())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images, nouns, contexts = [], [], []
    for n, noun in enumerate(NOUNS):
        for c, phrase in enumerate(CONTEXTS.values()):
            first = HELD_OUT_SEED + 100 * (n * len(CONTEXTS) + c)
            images += pipeline(
                [f"a photo of a {noun} {phrase}"] * PER_PROMPT,
                generator=[torch.Generator().manual_seed(first + k) for k in range(PER_PROMPT)],
                guidance_scale=recipe["guidance_scale"],
                num_inference_steps=recipe["num_inference_steps"],
            ).images
            nouns += [n] * PER_PROMPT
            contexts += [c] * PER_PROMPT
    return to_pixels([np.asarray(image) for image in images]), torch.tensor(nouns), torch.tensor(contexts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    classifier = train_classifier()
    scores = {
        "real": shares(classifier, *labelled(HELD_OUT_SEED, 600)),
        "generated": shares(classifier, *generate(folder)),
        "pictures": len(NOUNS) * len(CONTEXTS) * PER_PROMPT,
    }
    (folder.parent / "quality.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
