"""What the original Stable Diffusion programs call the tensors of a diffusers UNet, VAE and text encoder.

The original UNet (CompVis ldm, Stability sgm: openaimodel.py) numbers its blocks through, level after level; the
original VAE (ldm: autoencoder.py, model.py) counts the decoder's levels from the finest; open_clip keeps query, key
and value in one matrix. Which levels there are is read off the names, so nothing here belongs to one base model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from booth.errors import FormatError

_UNET_TOP = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # diffusers before 0.15 named them so, and the published SD 1.5 folder still does
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPEN_CLIP = (
    (re.compile(r"^embeddings\.token_embedding\."), "token_embedding."),
    (re.compile(r"^embeddings\.position_embedding\.weight$"), "positional_embedding"),
    (re.compile(r"^final_layer_norm\."), "ln_final."),
    (re.compile(r"^encoder\.layers\."), "transformer.resblocks."),
    (re.compile(r"\.self_attn\."), ".attn."),
    (re.compile(r"\.layer_norm([12])\."), r".ln_\1."),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.c_fc."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.c_proj."),
    (re.compile(r"\.[qkv]_proj\.(weight|bias)$"), r".in_proj_\1"),
)


def unet_names(names: Collection[str]) -> dict[str, str]:
    """The original name of every tensor of a diffusers UNet. Raises FormatError for one that has none."""
    prefixes = _UNET_TOP | _input_blocks(names) | _middle_block(names) | _output_blocks(names)
    return {name: _renamed("unet", name, prefixes, _UNET_RESNET if ".resnets." in name else {}) for name in names}


def vae_names(names: Collection[str]) -> dict[str, str]:
    """The original name of every tensor of a diffusers VAE. Raises FormatError for one that has none."""
    prefixes = {"quant_conv.": "quant_conv.", "post_quant_conv.": "post_quant_conv."}
    for half in ("encoder", "decoder"):
        prefixes |= _vae_half(names, half)
    return {name: _renamed("vae", name, prefixes, _vae_inner(name)) for name in names}


def clip_name(name: str) -> str:
    """The original name of a tensor of OpenAI's text encoder; transformers 5 leaves `text_model.` out, we do not."""
    return "text_model." + name.removeprefix("text_model.")


def open_clip_name(name: str) -> str:
    """The original name of a tensor of open_clip's text encoder: one for the three of query, key and value."""
    original = name.removeprefix("text_model.")
    if original == "text_projection.weight":
        return "text_projection"
    for pattern, replacement in _OPEN_CLIP:
        original = pattern.sub(replacement, original)
    return original


def _input_blocks(names: Collection[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    position = 1  # input block 0 is conv_in
    for level in range(_count(names, "down_blocks")):
        block = f"down_blocks.{level}"
        for layer in range(_count(names, f"{block}.resnets")):
            prefixes[f"{block}.resnets.{layer}."] = f"input_blocks.{position}.0."
            prefixes[f"{block}.attentions.{layer}."] = f"input_blocks.{position}.1."
            position += 1
        if _count(names, f"{block}.downsamplers"):
            prefixes[f"{block}.downsamplers.0.conv."] = f"input_blocks.{position}.0.op."
            position += 1
    return prefixes


def _middle_block(names: Collection[str]) -> dict[str, str]:
    resnets, attentions = (_count(names, f"mid_block.{kind}") for kind in ("resnets", "attentions"))
    prefixes = {f"mid_block.resnets.{layer}.": f"middle_block.{2 * layer}." for layer in range(resnets)}
    for layer in range(attentions):
        prefixes[f"mid_block.attentions.{layer}."] = f"middle_block.{2 * layer + 1}."
    return prefixes


def _output_blocks(names: Collection[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    position = 0
    for level in range(_count(names, "up_blocks")):
        block = f"up_blocks.{level}"
        for layer in range(_count(names, f"{block}.resnets")):
            prefixes[f"{block}.resnets.{layer}."] = f"output_blocks.{position}.0."
            prefixes[f"{block}.attentions.{layer}."] = f"output_blocks.{position}.1."
            position += 1
        after = 2 if _count(names, f"{block}.attentions") else 1  # the upsampler is last in its level's last block
        prefixes[f"{block}.upsamplers.0.conv."] = f"output_blocks.{position - 1}.{after}.conv."
    return prefixes


def _vae_half(names: Collection[str], half: str) -> dict[str, str]:
    down_or_up, sampler = ("down", "downsample") if half == "encoder" else ("up", "upsample")
    prefixes = {
        f"{half}.conv_in.": f"{half}.conv_in.",
        f"{half}.conv_out.": f"{half}.conv_out.",
        f"{half}.conv_norm_out.": f"{half}.norm_out.",
        f"{half}.mid_block.attentions.0.": f"{half}.mid.attn_1.",
    }
    for layer in range(_count(names, f"{half}.mid_block.resnets")):
        prefixes[f"{half}.mid_block.resnets.{layer}."] = f"{half}.mid.block_{layer + 1}."
    levels = _count(names, f"{half}.{down_or_up}_blocks")
    for level in range(levels):
        block = f"{half}.{down_or_up}_blocks.{level}"
        original = f"{half}.{down_or_up}.{level if half == 'encoder' else levels - 1 - level}"
        for layer in range(_count(names, f"{block}.resnets")):
            prefixes[f"{block}.resnets.{layer}."] = f"{original}.block.{layer}."
        prefixes[f"{block}.{sampler}rs.0.conv."] = f"{original}.{sampler}.conv."
    return prefixes


def _vae_inner(name: str) -> Mapping[str, str]:
    if ".attentions." in name:
        return _VAE_ATTENTION
    return {"conv_shortcut": "nin_shortcut"} if ".resnets." in name else {}


def _count(names: Collection[str], prefix: str) -> int:
    """How many numbered children a list of modules has."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _renamed(part: str, name: str, prefixes: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """The name with its module's prefix and, within the module, its layer renamed."""
    words = name.split(".")
    for end in range(len(words) - 1, 0, -1):
        prefix = ".".join(words[:end]) + "."
        if prefix in prefixes:
            layer, _, kind = name[len(prefix) :].rpartition(".")
            return prefixes[prefix] + (f"{inner.get(layer, layer)}.{kind}" if layer else kind)
    raise FormatError(f"{part} has a tensor {name} that the original layout has no name for.")
