"""Which sides a picture may have: what the base model's VAE and UNet halve must come out whole."""

import json
from functools import lru_cache
from typing import Any

from booth.contract.attempts import StoredFile
from booth.contract.problems import FieldProblem
from booth_service.errors import BaseModelError
from booth_service.storage.s3 import ObjectStore


def side_multiple_px(store: ObjectStore, files: list[StoredFile]) -> int:
    """Sides must be multiples of this. VAE and UNet halve a picture after each of their down blocks but the last.

    Raises BaseModelError where the base model's files do not say it.
    """
    vae, unet = (_config(store, files, part) for part in ("vae", "unet"))
    try:
        halvings: int = len(vae["block_out_channels"]) - 1 + len(unet["down_block_types"]) - 1
    except (KeyError, TypeError) as error:
        raise BaseModelError(f"the base model's vae/config.json or unet/config.json lacks {error}") from None
    return 1 << halvings


def resolution_problems(resolution: int, multiple: int, field: str = "resolution") -> list[FieldProblem]:
    """A problem where pictures of this side do not pass through the base model's networks whole."""
    if resolution % multiple == 0:
        return []
    below = resolution // multiple * multiple
    near = f"{below} or {below + multiple}" if below else f"{multiple}"
    message = f"The base model's networks take multiples of {multiple}."
    return [FieldProblem(field=field, value=str(resolution), message=message, remedy=f"Give {near}.")]


def _config(store: ObjectStore, files: list[StoredFile], part: str) -> Any:
    path = f"{part}/config.json"
    keys = [file.key for file in files if file.path == path]
    if not keys:
        raise BaseModelError(f"the base model has no {path}")
    return _parsed(store, keys[0])


@lru_cache(256)
def _parsed(store: ObjectStore, key: str) -> Any:
    """Keys of base models' files are those of their content: what was read once is so for good."""
    return json.loads(store.get(key))
