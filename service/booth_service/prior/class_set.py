"""A class-image set: its content address, its items, and the manifest that says it is complete."""

import hashlib
import json

from pydantic import BaseModel

from booth_service.diffusion.noise import hash64
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

SET_SEED = 0


class ClassSetSpec(BaseModel):
    """All that a class image depends on. Equal specs give equal pictures, so their address is shared by jobs."""

    base_sha256: str
    class_prompt: str
    negative_prompt: str = ""
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    resolution: int
    dtype: str
    block_size: int
    seed: int = SET_SEED

    @property
    def address(self) -> str:
        """The set's content address, 32 hex digits."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def item_seed(self, index: int) -> int:
        """The seed of picture `index`; neighbours are unrelated."""
        return hash64(self.seed, index) >> 1


class ClassItem(BaseModel):
    """One class image of a complete set."""

    index: int
    key: str
    sha256: str


class ClassManifest(BaseModel):
    """The first `len(items)` pictures of a set. Written last; nobody lists a folder to know what exists."""

    spec: ClassSetSpec
    items: list[ClassItem]


def missing_blocks(store: ObjectStore, tenant_id: str, spec: ClassSetSpec, count: int) -> list[list[int]]:
    """Blocks of consecutive indices with at least one picture missing, each always whole.

    The block is the unit of work, so that tensor shapes, and with them the bits of a picture, never depend on what
    was already there.
    """
    blocks = []
    for start in range(0, count, spec.block_size):
        block = list(range(start, start + spec.block_size))
        wanted = [index for index in block if index < count]
        if any(store.size(keys.class_item(tenant_id, spec.address, index)) is None for index in wanted):
            blocks.append(block)
    return blocks
