"""Train the encoders that stand in for DINO, CLIP and LPIPS on tinyworld, as an encoder suite.

    python examples/tinyworld/train_encoders.py             # about twelve minutes of one core
    python examples/tinyworld/train_encoders.py --check     # how far they can be trusted

`subject` is invariant to context, pose and hat and tells identities of one noun apart; `attributes` names context,
noun, hat and main colour and is the backbone of the perceptual distance; `clip` is a text and an image tower trained on
the world's captions, by other seeds and another text encoder than the base model's. None has seen a subject's identity.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from encoder_check import check
from encoder_data import (
    BASE_MODEL,
    LABELS,
    TRAINING_SEED,
    Pictures,
    augmented,
    rendered,
    through_autoencoder,
    views_of_identities,
)
from safetensors.torch import load_file, save_file
from tokenizer import MAX_LENGTH
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedModel, ResNetConfig, ResNetModel
from world import CONTEXTS, HUES, NOUNS, RESOLUTION_PX, random_caption

SUITE = Path(__file__).parent / "encoders"
IDENTITIES, VIEWS = 4_000, 3
BATCH_IDENTITIES, BATCH_NOUNS = 64, 2  # identities of few nouns in a batch: all the others are hard negatives
BATCH = 2 * BATCH_IDENTITIES
SUBJECT_STEPS, ATTRIBUTE_STEPS, CLIP_STEPS = 700, 700, 700
TEMPERATURE = 0.1
WARMUP = 50


def training_pictures(identities: int) -> Pictures:
    """Renders, every fourth of them through the base model's autoencoder."""
    pictures = rendered(views_of_identities(identities, VIEWS, TRAINING_SEED), VIEWS)
    pictures.pixels[1::4] = through_autoencoder(pictures.pixels[1::4])
    return pictures


def steps_of(model: nn.Module, steps: int, peak: float, name: str) -> Iterator[Callable[[Tensor], None]]:
    """One function a step, which takes the loss and moves the model; the learning rate falls as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02)
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))

        def moved(loss: Tensor, step: int = step) -> None:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 100 == 99:
                print(f"{name} {step + 1}/{steps} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)

        yield moved


def pairs_of_views(pictures: Pictures, rng: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of two different views of each of BATCH_IDENTITIES identities of BATCH_NOUNS nouns."""
    identities = len(pictures.scenes) // pictures.views
    nouns = rng.sample(range(len(NOUNS)), BATCH_NOUNS)
    share = BATCH_IDENTITIES // BATCH_NOUNS
    chosen = [n for noun in nouns for n in rng.sample(range(noun, identities, len(NOUNS)), share)]
    views = [[n * pictures.views + view for view in rng.sample(range(pictures.views), 2)] for n in chosen]
    return [first for first, _ in views], [second for _, second in views]


def info_nce(first: Tensor, second: Tensor, temperature: Tensor | float) -> Tensor:
    """Both directions of the contrastive loss between rows (B, D) that belong together."""
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    own = torch.arange(len(first))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_subject_encoder(pictures: Pictures, steps: int) -> ResNetModel:
    """An image goes to a direction that says who is shown. PReLU, so that directions may oppose each other."""
    torch.manual_seed(21)
    config = ResNetConfig(
        embedding_size=24, hidden_sizes=[32, 64, 112, 160], depths=[1, 1, 1, 1], layer_type="basic", hidden_act="prelu"
    )
    model, rng, generator = ResNetModel(config), random.Random(21), torch.Generator().manual_seed(21)
    for moved in steps_of(model, steps, 2e-3, "subject"):
        first, second = pairs_of_views(pictures, rng)
        pooled = model(augmented(pictures.pixels[first + second], generator)).pooler_output.flatten(1)
        moved(info_nce(pooled[: len(first)], pooled[len(first) :], TEMPERATURE))
    return model.eval()


def train_attributes(pictures: Pictures, steps: int) -> tuple[ResNetModel, nn.ModuleDict]:
    """A backbone, and on its pooled output one linear head for each attribute."""
    torch.manual_seed(22)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[24, 48, 80, 112], depths=[1, 1, 1, 1], layer_type="basic")
    backbone = ResNetModel(config)
    heads = nn.ModuleDict({name: nn.Linear(config.hidden_sizes[-1], len(names)) for name, names in LABELS.items()})
    labels = {name: pictures.labels(name) for name in LABELS}
    generator = torch.Generator().manual_seed(22)
    for moved in steps_of(nn.ModuleList([backbone, heads]), steps, 2e-3, "attributes"):
        batch = torch.randint(0, len(pictures.scenes), (BATCH,), generator=generator)
        pooled = backbone(augmented(pictures.pixels[batch], generator)).pooler_output.flatten(1)
        losses = [F.cross_entropy(head(pooled), labels[name][batch]) for name, head in heads.items()]
        moved(torch.stack(losses).sum())
    return backbone.eval(), heads.eval()


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": RESOLUTION_PX, "patch_size": 8,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def train_clip(pictures: Pictures, tokenizer: CLIPTokenizer, steps: int) -> CLIPModel:
    """Two towers whose directions agree for a picture and its caption, words left out of it at random."""
    torch.manual_seed(23)
    model, rng, generator = new_clip(tokenizer), random.Random(23), torch.Generator().manual_seed(23)
    for moved in steps_of(model, steps, 1.5e-3, "clip"):
        batch = rng.sample(range(len(pictures.scenes)), BATCH)
        captions = [random_caption(pictures.scenes[n], rng) for n in batch]
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        output = model(pixel_values=augmented(pictures.pixels[batch], generator), **tokens)
        moved(info_nce(output.image_embeds, output.text_embeds, model.logit_scale.neg().exp().clamp(min=0.01)))
    return model.eval()


def save_in_half(model: PreTrainedModel, folder: Path) -> None:
    """A folder that from_pretrained reads into single precision though the file holds half as many bytes."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({name: halved(tensor) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def manifest() -> dict[str, object]:
    """encoders.json: which folder is what, how pictures go in, and which words of a prompt name which label."""
    half = [0.5, 0.5, 0.5]
    preprocessing = {
        "resize_px": RESOLUTION_PX, "crop_px": RESOLUTION_PX, "resample": "bicubic", "mean": half, "std": half
    }  # fmt: skip
    phrases = {
        "context": {phrase: name for name, phrase in CONTEXTS.items()},
        "noun": {noun: noun for noun in NOUNS},
        "hat": {"wearing a red hat": "hat"},
        "colour": {
            f"{article} {hue}": hue for hue in HUES if hue != "red" for article in ("a", "an")
        },  # the hat is red
    }
    heads = {name: {"labels": list(labels), "phrases": phrases[name]} for name, labels in LABELS.items()}
    return {
        "name": "tinyworld",
        "subject": {"folder": "subject", "vector": "pooled", **preprocessing},
        "clip": {"folder": "clip", **preprocessing},
        "perceptual": {"folder": "attributes", "kind": "backbone", **preprocessing},
        "attributes": {"folder": "attributes", "heads": heads, **preprocessing},
    }


def train(folder: Path, share: float) -> None:
    """All encoders of the suite; `share` of the identities and steps makes a quick, worse one."""
    pictures = training_pictures(round(IDENTITIES * share))
    save_in_half(train_subject_encoder(pictures, round(SUBJECT_STEPS * share)), folder / "subject")
    backbone, heads = train_attributes(pictures, round(ATTRIBUTE_STEPS * share))
    save_in_half(backbone, folder / "attributes")
    weights = {name: halved(tensor).contiguous() for name, tensor in heads.state_dict().items()}
    save_file(weights, folder / "attributes" / "heads.safetensors")
    shutil.copytree(BASE_MODEL / "tokenizer", folder / "clip", dirs_exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    save_in_half(train_clip(pictures, tokenizer, round(CLIP_STEPS * share)), folder / "clip")
    (folder / "encoders.json").write_text(json.dumps(manifest(), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=SUITE, help="the suite's folder")
    parser.add_argument("--share", type=float, default=1.0, help="share of identities and steps: 0.2 takes 3 minutes")
    parser.add_argument("--check", action="store_true", help="only measure the committed encoders")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.check:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        train(arguments.folder, arguments.share)
    validity = check(arguments.folder)
    (arguments.folder / "validity.json").write_text(json.dumps(validity, indent=1) + "\n")


if __name__ == "__main__":
    main()
