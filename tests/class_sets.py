"""Class-image sets of the tiny base model, made in this process, and what is done to their stored bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stored_base import store_base
from tiny_base import write_tiny_base

from booth_service.prior.block_maker import BlockMaker, BlockTask, SetWork
from booth_service.prior.blocks import Place
from booth_service.prior.class_set import ClassBlock, ClassPicture, ClassSetSpec, OwnSetSpec
from booth_service.prior.ensure import ClassImages, Make, ensure_class_images
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256
from booth_service.storage.s3 import ObjectStore

SPEC = ClassSetSpec(
    base_sha256="0" * 64,
    class_prompt="a photo of a teapot",
    negative_prompt="",
    scheduler="base",
    num_inference_steps=2,
    guidance_scale=3.0,
    resolution=32,
    dtype="float32",
    block_size=4,
    threads_per_actor=1,
    seed=0,
)


def own_spec(*names: str) -> OwnSetSpec:
    """A set of pictures that are nowhere, two to a block."""
    pictures = [
        ClassPicture(path=name, key=f"somewhere/{name}", bytes=1, sha256=name * 64, height=32, width=32)
        for name in names
    ]
    return OwnSetSpec(base_sha256="0" * 64, resolution=32, block_size=2, pictures=pictures)


def set_work(store: ObjectStore, folder: Path, tenant_id: str, **changes: object) -> SetWork:
    """A set of the tiny base model in a tenant's own place; `changes` are the spec's."""
    files = store_base(store, write_tiny_base(folder / "tiny"))
    spec = SPEC.model_copy(update={"base_sha256": content_sha256(files), **changes})
    place = Place(store, keys.class_set(tenant_id, spec.address))
    return SetWork(spec, place, files, str(folder / "scratch"), use_gpu=False)


def elsewhere(work: SetWork, tenant_id: str) -> SetWork:
    """The same set of the same base in another tenant's place."""
    return replace(work, place=Place(work.place.store, keys.class_set(tenant_id, work.spec.address)))


@dataclass
class Here:
    """Makes blocks one after the other in this process, and remembers which. `dies_after` so many it raises."""

    made: list[BlockTask]
    dies_after: int | None = None

    def __call__(self, work: SetWork, tasks: Sequence[BlockTask]) -> Iterator[ClassBlock]:
        maker = BlockMaker(work)
        for task in tasks:
            if self.dies_after is not None and len(self.made) == self.dies_after:
                raise KeyboardInterrupt
            self.made.append(task)
            yield maker.make(task)


def ensured(work: SetWork, count: int, make: Make, *, with_pictures: bool = False) -> ClassImages:
    """The set's first pictures."""
    return ensure_class_images(work, count, make, with_pictures=with_pictures, on_made=lambda done, total: None)


def stored(work: SetWork) -> dict[str, bytes]:
    """All that lies at the set's place."""
    store = work.place.store
    return {key: store.get(key) for key in store.keys(work.place.prefix)}


def flip_a_byte(store: ObjectStore, key: str) -> None:
    """The object keeps its size, and one byte in the middle of it is another."""
    body = bytearray(store.get(key))
    body[len(body) // 2] ^= 1
    store.put(key, bytes(body))
