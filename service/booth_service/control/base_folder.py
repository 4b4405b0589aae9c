"""Which files of a diffusers folder make up a base model: plain safetensors of its components, JSON and text."""

import json
from dataclasses import dataclass
from pathlib import Path

from booth_service.control.safetensors_header import first_not_finite
from booth_service.errors import BadWeights, BaseModelError

INDEX = "model_index.json"
RECIPE = "booth_recipe.json"
_SD_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
# Pipeline class -> family, and the parts that training needs; diffusion/components.py knows how each is trained.
FAMILIES = {
    "StableDiffusionPipeline": ("stable-diffusion", _SD_PARTS),
    "StableDiffusionXLPipeline": ("stable-diffusion-xl", (*_SD_PARTS, "tokenizer_2", "text_encoder_2")),
}
_UNSAFE = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}


@dataclass(frozen=True)
class BaseFolder:
    """A folder that can serve as a base model. `files` are paths below `root`, sorted."""

    root: Path
    family: str
    files: list[Path]


def read(root: Path) -> BaseFolder:
    """The usable files. Raises BaseModelError, naming what is wrong and what to do."""
    if not (root / INDEX).is_file():
        raise BaseModelError(f"{root} has no {INDEX}: it is not a diffusers folder. Give the folder that holds it.")
    index = json.loads((root / INDEX).read_text())
    family, needed = _family(root, index.get("_class_name"))
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    if missing := [name for name in needed if name not in parts]:
        raise BaseModelError(
            f"{root} has no {', '.join(missing)}, so it cannot be fine-tuned; a {family} base model needs "
            f"{', '.join(needed)}. Save the whole pipeline and give that folder."
        )
    files = [path for path in root.iterdir() if path.suffix in (".json", ".txt")]
    for name in parts:
        files += _component(root / name)
    return BaseFolder(root, family, sorted(path.relative_to(root) for path in files if path.name != RECIPE))


def refuse_not_finite(folder: BaseFolder) -> None:
    """Raise BaseModelError where a weight is NaN or infinite, naming file and tensor; reads every byte once."""
    for path in folder.files:
        if path.suffix == ".safetensors":
            try:
                name = first_not_finite(folder.root / path)
            except BadWeights as error:
                raise BaseModelError(f"{path}: {error.detail}. Fetch the folder again.") from None
            if name is not None:
                raise BaseModelError(f"{path} has values that are not finite in {name}. Fetch the folder again.")


def _family(root: Path, class_name: object) -> tuple[str, tuple[str, ...]]:
    if not isinstance(class_name, str) or class_name not in FAMILIES:
        raise BaseModelError(
            f"{root} is a {class_name}, which cannot be fine-tuned here. Give a folder of one of {', '.join(FAMILIES)}."
        )
    return FAMILIES[class_name]


def _component(folder: Path) -> list[Path]:
    """Weights of the plain variant and everything that describes them."""
    if not folder.is_dir():
        raise BaseModelError(f"{INDEX} names {folder.name}, but {folder} is not there. Fetch the whole folder.")
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    plain = [path for path in files if path.suffix == ".safetensors" and "." not in path.stem]
    variants = [path.name for path in files if path.suffix == ".safetensors" and path not in plain]
    unsafe = [path.name for path in files if path.suffix in _UNSAFE]
    if not plain and variants:
        raise BaseModelError(
            f"{folder} has weights in a variant only ({', '.join(variants)}). "
            "Save the pipeline without variant= and give that folder."
        )
    if not plain and unsafe:
        raise BaseModelError(
            f"{folder} has weights only as {', '.join(unsafe)}, which may run code when they are loaded. "
            "Save the pipeline with safe_serialization=True and give that folder."
        )
    return plain + [path for path in files if path.suffix in (".json", ".txt") and not _describes_a_variant(path)]


def _describes_a_variant(path: Path) -> bool:
    """True for the index of a variant's shards, such as x.safetensors.index.fp16.json, and of pickled weights."""
    return (".index." in path.name and not path.name.endswith(".safetensors.index.json")) or ".bin.index." in path.name
