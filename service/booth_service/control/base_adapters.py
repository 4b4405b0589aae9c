"""Which files of a source are an IP-Adapter for a base model, and what is refused: other base, other encoder."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from booth.contract.attempts import StoredFile
from booth.contract.ip_adapter import FOLDER, IMAGE_ENCODER, is_weights
from booth_service.control.base_folder import component, refuse_own_code
from booth_service.control.base_sources import Source, SourceFile
from booth_service.control.safetensors_header import Tensor, read_header
from booth_service.errors import BadWeights, BaseModelError
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.stored_file import Ranges

_PROJECTED = "image_proj.proj.weight"  # the first matrix of the kind that reads the encoder's projection, or else
_HIDDEN = ("image_proj.proj_in.weight", "image_proj.proj.0.weight")  # of those that read its hidden states
_FACES = ("lora", "perceiver_resampler")


def chosen(source: Source, weights: str | None, encoder: str | None) -> dict[str, SourceFile]:
    """The adapter's files by their paths in a model's folder. `weights` and `encoder` are the operator's own choice of
    a file and a folder of the source. Raises BaseModelError, naming what there is to choose from.
    """
    path = _weights(source, weights)
    if not is_weights(f"{FOLDER}/{path.name}"):
        raise BaseModelError(f"{path} has the name that a model's photo has ({path.name}). Give the file another one.")
    folder = _encoder(source, path, encoder)
    own = {f"{IMAGE_ENCODER}/{name.removeprefix(f'{folder}/')}": file for name, file in _below(source, folder)}
    image_encoder = Source(source.name, source.revision, own)
    refuse_own_code(image_encoder, IMAGE_ENCODER)
    found = {f"{FOLDER}/{name}": own[name] for name in component(image_encoder, IMAGE_ENCODER, "the adapter")}
    return {f"{FOLDER}/{path.name}": source.files[path.as_posix()], **found}


def refuse_unfit(store: ObjectStore, adapter: list[StoredFile], base: list[StoredFile]) -> None:
    """Raise BaseModelError where stored adapter and stored base model do not go together."""
    tensors = weights_of(store, adapter)
    if faces := next((name for name in tensors for kind in _FACES if kind in name), None):
        raise BaseModelError(f"The IP-Adapter has {faces}: it is of the FaceID kind, which reads no image encoder.")
    ours = Counter(tuple(tensors[name].shape) for name in tensors if name.endswith(".to_k_ip.weight"))
    theirs = Counter(_cross_attention(store, base))
    if ours != theirs:
        raise BaseModelError(
            f"The IP-Adapter is for another base model: it has {_shown(ours)}, and this one's UNet {_shown(theirs)} "
            "as keys of its cross-attention. Give the adapter of this base model's family."
        )
    width, is_projected = width_of(tensors)
    config = _encoder_config(store, adapter)
    name = "projection_dim" if is_projected else "hidden_size"
    if config.get("model_type") != "clip_vision_model" or config.get(name) != width:
        raise BaseModelError(
            f"The IP-Adapter reads an image encoder of {name} {width}, and the one given is a "
            f"{config.get('model_type')} of {config.get(name)}. Name its own with --ip-adapter-encoder."
        )


def weights_of(store: ObjectStore, adapter: Iterable[StoredFile]) -> dict[str, Tensor]:
    """The tensors of a stored adapter's own file. Raises BadWeights, StorageError."""
    (file,) = (file for file in adapter if is_weights(file.path))
    return read_header(Ranges(store, file).read, file.path, file.bytes)


def width_of(tensors: Mapping[str, Tensor]) -> tuple[int, bool]:
    """Width of the embeddings that an adapter with these tensors reads, and whether they are the encoder's projected
    ones, one for a photo; else they are hidden states, one for each of its tokens. Raises BaseModelError.
    """
    for name in (_PROJECTED, *_HIDDEN):
        if name in tensors and len(tensors[name].shape) == 2:
            return tensors[name].shape[1], name == _PROJECTED
    raise BaseModelError(f"The IP-Adapter has none of {_PROJECTED}, {', '.join(_HIDDEN)}, as published ones do.")


def _weights(source: Source, asked: str | None) -> PurePosixPath:
    if asked is not None and asked not in source.files:
        raise BaseModelError(f"{source.name} has no file {asked!r}. --ip-adapter-weights takes a path inside of it.")
    found = [PurePosixPath(asked)] if asked is not None else _candidates(source)
    if len(found) == 1 and found[0].suffix == ".safetensors":
        return found[0]
    if not found or asked is not None:
        raise BaseModelError(
            f"{source.name} has its IP-Adapter in no .safetensors file. Other formats may run code when they are "
            "loaded; convert it, or name the right file with --ip-adapter-weights."
        )
    named = ", ".join(path.as_posix() for path in found)
    raise BaseModelError(f"{source.name} has several IP-Adapters. Name one with --ip-adapter-weights: {named}.")


def _candidates(source: Source) -> list[PurePosixPath]:
    """The weight files that belong to no model folder."""
    encoders = set(_encoders(source))
    paths = [PurePosixPath(path) for path in sorted(source.files) if path.endswith(".safetensors")]
    return [path for path in paths if path.parent.as_posix() not in encoders]


def _encoders(source: Source) -> list[str]:
    """The folders that hold a model."""
    return [PurePosixPath(path).parent.as_posix() for path in sorted(source.files) if path.endswith("/config.json")]


def _encoder(source: Source, weights: PurePosixPath, asked: str | None) -> str:
    """The folder of the image encoder: where none is asked for, beside the weights, where diffusers looks for it."""
    folder = (weights.parent / IMAGE_ENCODER).as_posix() if asked is None else asked.strip("/")
    if folder not in _encoders(source):
        there = ", ".join(_encoders(source)) or "none"
        raise BaseModelError(
            f"{source.name} has no image encoder at {folder}. Name its folder with --ip-adapter-encoder; there is "
            f"{there}."
        )
    return folder


def _below(source: Source, folder: str) -> list[tuple[str, SourceFile]]:
    return [(path, file) for path, file in source.files.items() if path.startswith(f"{folder}/")]


def _cross_attention(store: ObjectStore, base: list[StoredFile]) -> Iterable[tuple[int, ...]]:
    """The shapes of all key matrices of the UNet that read the prompt."""
    for file in base:
        if file.path.startswith("unet/") and file.path.endswith(".safetensors"):
            tensors = read_header(Ranges(store, file).read, file.path, file.bytes)
            yield from (tuple(each.shape) for name, each in tensors.items() if name.endswith(".attn2.to_k.weight"))


def _encoder_config(store: ObjectStore, adapter: list[StoredFile]) -> dict[str, Any]:
    path = f"{FOLDER}/{IMAGE_ENCODER}/config.json"
    file = next(file for file in adapter if file.path == path)
    try:
        return dict(json.loads(store.get(file.key, file.sha256)))
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{path} is not a JSON object ({error})") from None


def _shown(shapes: Counter[tuple[int, ...]]) -> str:
    sizes = [f"{count} of {' x '.join(map(str, shape))}" for shape, count in sorted(shapes.items())]
    return ", ".join(sizes) or "none"
