"""What a row of a training step costs, by family: python tests/benchmarks/measure_sizes.py <configs folder> <out.json>

Builds the parts of a base model from its configuration under torch's FakeTensorMode (shapes without memory) and runs
their forward, at two sizes. With fused attention all bytes grow in proportion to the latent's cells, so a line through
both gives, for a cell of a row (for a text encoder: for a row),

plain         bytes that autograd keeps from forward to backward (saved-tensor hooks), parameters left out
checkpointed  the same where blocks are recomputed: what is kept between blocks, and the largest block's own
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

RESOLUTIONS_PX = (256, 512, 768, 1024)  # of the FLOP
SIDES = (32, 64)  # latent cells along a side at which bytes are measured
MODES = ("bf16", "autocast")  # fp32 takes twice the bytes of bf16
SOURCE = "measured by tests/benchmarks/measure_sizes.py: FakeTensorMode, saved-tensor hooks, torch's FLOP counter"


@contextmanager
def wide_norms() -> Iterator[None]:
    """The norms compute in fp32, as CUDA's autocast has it; the CPU's list leaves them in bf16.

    It lies round forward and backward, because checkpointing calls the norms again there.
    """

    def wide(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *rest, **named: norm(x.float(), *rest, **named)

    with (
        mock.patch.object(F, "group_norm", wide(F.group_norm)),
        mock.patch.object(F, "layer_norm", wide(F.layer_norm)),
    ):
        yield


class Kept:
    """Storages that autograd keeps, each once; they are held, so that no address is used twice."""

    def __init__(self, module: nn.Module) -> None:
        self.own = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Called for every tensor that is saved for backward."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.storages[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    def hooks(self) -> AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)


def plain_bytes(run: Callable[[], Tensor], module: nn.Module) -> list[int]:
    """Bytes kept from forward to backward."""
    kept = Kept(module)
    with kept.hooks():
        run()
    return [kept.nbytes]


def checkpointed_bytes(run: Callable[[], Tensor], module: nn.Module) -> list[int]:
    """Bytes kept between recomputed blocks, and then those that each block keeps while it is recomputed."""
    between, blocks = Kept(module), list[int]()

    def block(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Stands where torch's checkpoint is called: its arguments are kept, and nothing from inside."""
        for tensor in (each for each in given if isinstance(each, Tensor)):
            between.add(tensor)
        inside = Kept(module)
        with inside.hooks():
            result = function(*given, **named)
        blocks.append(inside.nbytes)
        return result

    module._set_gradient_checkpointing(True, block)
    with between.hooks():
        run()
    module._set_gradient_checkpointing(False)
    return [between.nbytes, *blocks]


def attention_flop(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products of fused attention; torch counts those of the GPU's kernel and not of the CPU's."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def flop(run: Callable[[], Tensor]) -> int:
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu_attention: attention_flop}) as counter:
        run()
    return int(counter.get_total_flops())


Call = Callable[[nn.Module], Tensor]


def byte_costs(build: Callable[[], nn.Module], calls: Sequence[Call], sizes: Sequence[int]) -> dict[str, Any]:
    """Bytes that grow with the size, by mode, with and without checkpointing. Autocast's copies of weights do not."""
    costs: dict[str, Any] = {}
    for mode in MODES:
        torch.set_default_dtype(torch.bfloat16 if mode == "bf16" else torch.float32)
        is_autocast = mode == "autocast"
        with FakeTensorMode(), wide_norms() if is_autocast else nullcontext():
            module = build().train()

            def forward(call: Call, module: nn.Module = module, enabled: bool = is_autocast) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    return call(module)

            costs[mode] = {
                kind: growth(sizes, [count(partial(forward, call), module) for call in calls])
                for kind, count in (("plain", plain_bytes), ("checkpointed", checkpointed_bytes))
            }
    return costs


def growth(sizes: Sequence[int], counts: Sequence[list[int]]) -> float:
    """Growth with the size of what is always kept, and of the one recomputed block in which it is largest."""
    first, second = counts
    slopes = [(after - before) / (sizes[1] - sizes[0]) for before, after in zip(first, second, strict=True)]
    return slopes[0] + max(slopes[1:], default=0.0)


def forward_flop(build: Callable[[], nn.Module], calls: Sequence[Call]) -> list[int]:
    torch.set_default_dtype(torch.bfloat16)
    with FakeTensorMode(), torch.no_grad():
        module = build()
        return [flop(partial(call, module)) for call in calls]


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def unet_call(config: dict[str, Any], side: int, tokens: int) -> Call:
    """One row through the UNet: (1, C, side, side) latents."""

    def call(module: nn.Module) -> Tensor:
        dtype = next(module.parameters()).dtype
        latents = torch.zeros(1, config["in_channels"], side, side, dtype=dtype)
        text = torch.zeros(1, tokens, config["cross_attention_dim"], dtype=dtype)
        added = {}
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            added = {"text_embeds": torch.zeros(1, pooled, dtype=dtype), "time_ids": torch.zeros(1, 6)}
        return module(latents, torch.zeros(1, dtype=torch.long), text, added_cond_kwargs=added).sample

    return call


def text_encoder_of(config: dict[str, Any]) -> Callable[[], nn.Module]:
    kind = getattr(transformers, config["_class_name"])
    return lambda: kind(transformers.CLIPTextConfig(**plain(config), attn_implementation="sdpa"))


def text_call(config: dict[str, Any], rows: int) -> Call:
    ids = (rows, config["max_position_embeddings"])
    return lambda module: module(torch.zeros(ids, dtype=torch.long), output_hidden_states=True).hidden_states[-2]


def encode_call(config: dict[str, Any], resolution: int) -> Call:
    picture = (1, config["in_channels"], resolution, resolution)
    return lambda module: module.encode(torch.zeros(picture)).latent_dist.mean


def decode_call(config: dict[str, Any], side: int) -> Call:
    latents = (1, config["latent_channels"], side, side)
    return lambda module: module.decode(torch.zeros(latents)).sample


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """The table of one family."""
    parts = config["parameters"]
    scale = 2 ** (len(config["vae"]["block_out_channels"]) - 1)
    sides = [resolution // scale for resolution in RESOLUTIONS_PX]
    texts = [name for name in parts if name.startswith("text_encoder")]
    tokens = config["text_encoder"]["max_position_embeddings"]
    cells = [side**2 for side in SIDES]

    def unet() -> nn.Module:
        return diffusers.UNet2DConditionModel(**plain(config["unet"]))

    def vae() -> nn.Module:
        return diffusers.AutoencoderKL(**plain(config["vae"]))

    calls = [unet_call(config["unet"], side, tokens) for side in SIDES]
    table: dict[str, Any] = {
        "parameters": {name: part["count"] for name, part in parts.items()},
        "tensors": {name: part["tensors"] for name, part in parts.items()},
        "vae_scale_factor": scale,
        "resolution_px": config["unet"]["sample_size"] * scale,
        "width": sum(config["unet"]["block_out_channels"]),
        "text_widths": [config[name]["hidden_size"] for name in texts],
        "flop": {
            "latent_cells": [side**2 for side in sides],
            "unet": forward_flop(unet, [unet_call(config["unet"], side, tokens) for side in sides]),
            "vae_encode": forward_flop(vae, [encode_call(config["vae"], px) for px in RESOLUTIONS_PX]),
            "vae_decode": forward_flop(vae, [decode_call(config["vae"], side) for side in sides]),
            "text": sum(forward_flop(text_encoder_of(config[name]), [text_call(config[name], 1)])[0] for name in texts),
        },
        "unet": byte_costs(unet, calls, cells),
    }
    for name in texts:
        table[name] = byte_costs(
            text_encoder_of(config[name]), [text_call(config[name], rows) for rows in (1, 2)], [1, 2]
        )
    return table


def main() -> None:
    """Measure every family whose configuration is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, help="a folder of <family>.json: unet, vae, text_encoder, parameters")
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", nargs="*", default=["sd15", "sd21", "sdxl"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [name for name in arguments.families if (arguments.configs / f"{name}.json").exists()]
    table: dict[str, Any] = {"source": SOURCE, "torch": torch.__version__, "families": {}}
    for name in found:
        table["families"][name] = measure(json.loads((arguments.configs / f"{name}.json").read_text()))
        arguments.out.write_text(json.dumps(table, indent=1) + "\n")
        print(f"{name} measured", flush=True)


if __name__ == "__main__":
    main()
