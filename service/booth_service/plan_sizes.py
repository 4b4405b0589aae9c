"""Sizes of base models: parameters from files, bytes and FLOP of a row from a table measured by shape.

The table is plan_sizes.json, written by tests/benchmarks/measure_sizes.py. A base model that is not in it takes the
rows of the family nearest in size, scaled by its UNet's widths, and says so in `scaled_from`.
"""

import functools
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from booth_service.errors import BaseModelError

Mode = Literal["bf16", "autocast", "fp32"]
TABLE = Path(__file__).with_name("plan_sizes.json")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DEFAULT_TEXT_WIDTH = 512  # transformers' CLIPTextConfig, whose files leave out what is as it is there
SAME_SIZE = 0.001  # two UNets are of one family where their parameters differ by less


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a base model's parts, and the measured family that stands for its rows.

    `row_scale` is 1 for a measured family; otherwise the ratio of the UNets' widths, and `scaled_from` names it.
    `text_widths`: numbers of a token's embedding in each text encoder.
    """

    name: str
    family: str
    unet_parameters: int
    text_encoder_parameters: tuple[int, ...]
    vae_parameters: int
    vae_scale_factor: int
    resolution_px: int
    row_scale: float = 1.0
    scaled_from: str | None = None
    text_widths: tuple[int, ...] = ()

    def latent_cells(self, resolution: int) -> int:
        """Cells of a square picture's latent."""
        cells: int = (resolution // self.vae_scale_factor) ** 2
        return cells

    def tensors(self, train_text_encoder: bool) -> int:
        """How many tensors the trained parameters are, as in the family."""
        counts = self._table()["tensors"]
        parts = TEXT_ENCODERS if train_text_encoder else ()
        return int(counts["unet"] + sum(counts.get(part, 0) for part in parts))

    def row_bytes(self, latent_cells: int, mode: Mode, checkpointed: bool, train_text_encoder: bool) -> int:
        """Bytes that one row leaves for backward: in the UNet in proportion to its latent's cells, and in the text
        encoders where they are trained."""
        measured, wide = ("bf16", 2) if mode == "fp32" else (mode, 1)
        kind = "checkpointed" if checkpointed else "plain"
        table = self._table()
        count: float = table["unet"][measured][kind] * latent_cells
        if train_text_encoder:
            count += sum(table[part][measured][kind] for part in TEXT_ENCODERS if part in table)
        return math.ceil(wide * count * self.row_scale)

    def unet_flop(self, latent_cells: int) -> float:
        """FLOP of the UNet for one row, forward; backward takes twice as many again."""
        return self._flop("unet", latent_cells)

    def text_flop(self) -> float:
        """FLOP of all text encoders for one row, forward."""
        return float(self._table()["flop"]["text"]) * self.row_scale**2

    def vae_flop(self, latent_cells: int, direction: Literal["encode", "decode"]) -> float:
        """FLOP of the VAE for one picture."""
        return self._flop(f"vae_{direction}", latent_cells)

    def _flop(self, name: str, latent_cells: int) -> float:
        flop = self._table()["flop"]
        return line(list(zip(flop["latent_cells"], flop[name], strict=True)), latent_cells) * self.row_scale**2

    def _table(self) -> Any:
        return _table()["families"][self.family]


def line(points: Sequence[tuple[int, float]], at: int) -> float:
    """The value at a place, on straight lines through the points; the outer lines go on. Never below 0."""
    right = next((index for index, (x, _) in enumerate(points) if x >= at and index), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return max(0.0, y0 + (y1 - y0) * (at - x0) / (x1 - x0))


def measured_families() -> list[str]:
    """The names that `sizes_of_family` knows."""
    return list(_table()["families"])


def sizes_of_family(name: str) -> ModelSizes:
    """The sizes of a measured family, e.g. sd15. Raises BaseModelError for a name that is not in the table."""
    families = _table()["families"]
    if name not in families:
        raise BaseModelError(f"there are no measured sizes of {name!r}; there are {', '.join(families)}")
    row = families[name]
    parameters = row["parameters"]
    texts = tuple(parameters[part] for part in TEXT_ENCODERS if part in parameters)
    return ModelSizes(
        name,
        name,
        parameters["unet"],
        texts,
        parameters["vae"],
        row["vae_scale_factor"],
        row["resolution_px"],
        text_widths=tuple(row["text_widths"]),
    )


def sizes_of_folder(folder: Path) -> ModelSizes:
    """The sizes of a diffusers folder, from its configurations and the headers of its weights; no tensor is read.

    Raises BaseModelError where a part that training needs is missing or unreadable.
    """
    unet, vae = _config(folder, "unet"), _config(folder, "vae")
    unet_parameters = parameters_of(folder, "unet")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    width = sum(unet["block_out_channels"])
    family = _nearest_family(unet_parameters)
    reference = _table()["families"][family]
    texts = [part for part in TEXT_ENCODERS if (folder / part / "config.json").is_file()]
    is_measured = math.isclose(unet_parameters, reference["parameters"]["unet"], rel_tol=SAME_SIZE)
    return ModelSizes(
        name=str(folder),
        family=family,
        unet_parameters=unet_parameters,
        text_encoder_parameters=tuple(parameters_of(folder, part) for part in texts),
        vae_parameters=parameters_of(folder, "vae"),
        vae_scale_factor=scale,
        resolution_px=_side(unet["sample_size"]) * scale,
        row_scale=1.0 if is_measured else width / reference["width"],
        scaled_from=None if is_measured else family,
        text_widths=tuple(int(_config(folder, part).get("hidden_size", DEFAULT_TEXT_WIDTH)) for part in texts),
    )


def parameters_of(folder: Path, part: str) -> int:
    """How many numbers the weights of a part hold, from the headers of its safetensors files.

    Raises BaseModelError where there are none or a header cannot be read.
    """
    files = [file for file in sorted((folder / part).glob("*.safetensors")) if ".fp16." not in file.name]
    count = sum(_numbers_in(file) for file in files)
    if not count:
        raise BaseModelError(f"{folder / part} holds no safetensors weights; convert the model to safetensors first")
    return count


def _numbers_in(file: Path) -> int:
    """Numbers in one file: 8 bytes little endian say how long the JSON header is that follows (safetensors format)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
        raise BaseModelError(f"{file} has no readable safetensors header: {error}") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read ({error}); a diffusers folder with a {part} is needed") from error
    return config


def _side(sample_size: int | list[int]) -> int:
    return sample_size if isinstance(sample_size, int) else max(sample_size)


def _nearest_family(unet_parameters: int) -> str:
    families: dict[str, Any] = _table()["families"]
    sizes = {name: int(family["parameters"]["unet"]) for name, family in families.items()}
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / unet_parameters)))


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table
