"""A suite of encoders of a few kilobytes with random weights, in the layout of a real one."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizer import build
from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from booth.contract.encoders import LPIPS_TENSORS

SIDE_PX, PATCH_PX, CLIP_WIDTH = 32, 8, 12
LABELS, PHRASES = ["jungle", "beach", "moon"], {"in the jungle": "jungle", "on the beach": "beach"}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def write_tiny_suite(folder: Path, kind: str = "backbone", with_heads: bool = True) -> Path:
    """The folder holds a suite: a ViT, a CLIP, LPIPS of this kind, and a ResNet with the head "context"."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        vit = ViTConfig(hidden_size=16, image_size=SIDE_PX, patch_size=PATCH_PX, **sizes)
        ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino")
        _write_clip(folder / "clip", sizes)
        resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ResNetModel(resnet).save_pretrained(folder / "lpips")
        heads = {"context.weight": torch.randn(len(LABELS), 16), "context.bias": torch.randn(len(LABELS))}
        save_file(heads, folder / "lpips" / "heads.safetensors")
        if kind == "lpips-alexnet":
            weights = {name: torch.rand(shape) * 0.1 for name, shape in LPIPS_TENSORS.items()}
            save_file(weights, folder / "lpips" / "lpips.safetensors")
    (folder / "encoders.json").write_text(json.dumps(spec(kind, with_heads)))
    return folder


def spec(kind: str = "backbone", with_heads: bool = True) -> dict:
    """What encoders.json says."""
    sides = {"resize_px": 40, "crop_px": SIDE_PX, "resample": "bicubic"}
    told = {
        "name": "tiny",
        "subject": {"folder": "dino", "vector": "cls", **sides, **IMAGENET},
        "clip": {"folder": "clip", **sides, **HALF},
        "perceptual": {"folder": "lpips", "kind": kind, "resize_px": 64, "crop_px": 64, **HALF},
    }
    heads = {"context": {"labels": LABELS, "phrases": PHRASES}}
    return told | ({"attributes": {"folder": "lpips", "heads": heads, **sides, **HALF}} if with_heads else {})


def _write_clip(folder: Path, sizes: dict) -> None:
    tokenizer = build(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **sizes,
    }
    vision = {"hidden_size": 16, "image_size": SIDE_PX, "patch_size": PATCH_PX, **sizes}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_WIDTH)).save_pretrained(folder)
