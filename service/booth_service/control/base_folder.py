"""Which files of a diffusers folder make up a base model: plain safetensors of its components, JSON and text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from booth_service.control.base_sources import Source
from booth_service.errors import BaseModelError

INDEX = "model_index.json"
RECIPE = "booth_recipe.json"
_SD_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
# Pipeline class -> family, and the parts that training needs; diffusion/components.py knows how each is trained.
FAMILIES = {
    "StableDiffusionPipeline": ("stable-diffusion", _SD_PARTS),
    "StableDiffusionXLPipeline": ("stable-diffusion-xl", (*_SD_PARTS, "tokenizer_2", "text_encoder_2")),
}
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # whose classes a folder may name
_UNSAFE = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}
_TEXTS = (".json", ".txt")


@dataclass(frozen=True)
class BaseFolder:
    """What of a source is a base model: paths, sorted."""

    family: str
    files: list[str]


def read(source: Source) -> BaseFolder:
    """The usable files. Raises BaseModelError, naming what is wrong and what to do."""
    if INDEX not in source.files:
        raise BaseModelError(f"{source.name} has no {INDEX}: it is not a diffusers folder. Give the one that holds it.")
    index = _json(source, INDEX)
    family, needed = _family(source.name, index.get("_class_name"))
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    if missing := [name for name in needed if name not in parts]:
        raise BaseModelError(
            f"{source.name} has no {', '.join(missing)}, so it cannot be fine-tuned; a {family} base model needs "
            f"{', '.join(needed)}. Save the whole pipeline and give that folder."
        )
    for name in parts:
        _refuse_code(source, name, index[name][0])
    files = [path for path in source.files if "/" not in path and path.endswith(_TEXTS) and path != RECIPE]
    for name in parts:
        files += component(source, name, INDEX)
    return BaseFolder(family, sorted(files))


def _json(source: Source, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(source.files[path].whole()))
    except (ValueError, TypeError) as error:
        raise BaseModelError(f"{source.name}: {path} is not a JSON object ({error}). Fetch the folder again.") from None


def _family(where: str, class_name: object) -> tuple[str, tuple[str, ...]]:
    if not isinstance(class_name, str) or class_name not in FAMILIES:
        raise BaseModelError(
            f"{where} is a {class_name}, which cannot be fine-tuned here. "
            f"Give a folder of one of {', '.join(FAMILIES)}."
        )
    return FAMILIES[class_name]


def _refuse_code(source: Source, name: str, library: object) -> None:
    """Raise BaseModelError where loading the component would take a class from anywhere but the known libraries."""
    if library not in LIBRARIES:
        raise BaseModelError(
            f"{source.name}: {INDEX} takes {name} from {library!r}. Code of a folder's own is never run; the classes "
            f"must be of {', '.join(LIBRARIES)}."
        )
    refuse_own_code(source, name)


def refuse_own_code(source: Source, name: str) -> None:
    """Raise BaseModelError where a component's settings name code of the folder's own."""
    for path in (f"{name}/config.json", f"{name}/tokenizer_config.json"):
        if path in source.files and _json(source, path).get("auto_map"):
            raise BaseModelError(
                f"{source.name}: {path} has an auto_map, which names code of the folder's own. It is never run; give a "
                "folder whose classes are of the libraries."
            )


def component(source: Source, name: str, named_by: str) -> list[str]:
    """Weights of the plain variant and everything that describes them, of the folder that `named_by` names."""
    files = sorted(PurePosixPath(path) for path in source.files if path.startswith(f"{name}/") and path.count("/") == 1)
    if not files:
        raise BaseModelError(f"{named_by} names {name}, but {source.name} has no such folder. Fetch the whole of it.")
    weights = [path for path in files if path.suffix == ".safetensors"]
    plain = [path for path in weights if "." not in path.stem]
    if not plain:
        _refuse_without_plain_weights(f"{source.name}/{name}", files, weights)
    texts = [path for path in files if path.suffix in _TEXTS and not _describes_a_variant(path)]
    return [path.as_posix() for path in plain + texts]


def _refuse_without_plain_weights(
    where: str, files: Sequence[PurePosixPath], variants: Sequence[PurePosixPath]
) -> None:
    """Raise BaseModelError where the component has weights, but none that are taken."""
    if variants:
        raise BaseModelError(
            f"{where} has weights in a variant only ({', '.join(path.name for path in variants)}). "
            "Save it without variant= and give that folder."
        )
    if unsafe := [path.name for path in files if path.suffix in _UNSAFE]:
        raise BaseModelError(
            f"{where} has weights only as {', '.join(unsafe)}, which may run code when they are loaded. "
            "Save it with safe_serialization=True and give that folder."
        )


def _describes_a_variant(path: PurePosixPath) -> bool:
    """True for the index of a variant's shards, such as x.safetensors.index.fp16.json, and of pickled weights."""
    return (".index." in path.name and not path.name.endswith(".safetensors.index.json")) or ".bin.index." in path.name
